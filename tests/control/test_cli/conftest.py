"""One controller for all tests of the command; a home and a login for each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .bench import Cli, Controller, running_controller


@pytest.fixture(scope="package")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    with running_controller(tmp_path_factory.mktemp("controller")) as running:
        yield running


@pytest.fixture
def nobody(tmp_path: Path) -> Cli:
    """The command in an empty home: a new user."""
    home = tmp_path / "home"
    home.mkdir()
    return Cli(home)


@pytest.fixture
def cli(nobody: Cli, controller: Controller) -> Cli:
    """The command after `login`."""
    done = nobody("login", controller.url, "--yes", "--token-file", "-", stdin=controller.token)
    assert done.code == 0, done
    return nobody
