"""One controller for all tests of the command; a home and a login for each."""

import shutil
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


@pytest.fixture(scope="package")
def session_file(controller: Controller, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `login` saved, once for all tests: they start many commands already."""
    first = Cli(tmp_path_factory.mktemp("admin"))
    done = first("login", controller.url, "--yes", "--token-file", "-", stdin=controller.token)
    assert done.code == 0, done
    return first.saved


@pytest.fixture
def cli(nobody: Cli, session_file: Path) -> Cli:
    """The command after `login`, in a home of its own."""
    nobody.saved.parent.mkdir(parents=True)
    shutil.copy(session_file, nobody.saved)
    return nobody
