"""The OpenAPI document against the server that serves it: generated requests, valid and not, and what it answers.

Schemathesis checks that every answer has a documented status, type and shape, and that nothing is a server error.
"""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

EXAMPLES = 10  # valid and as many invalid, for each of the two dozen operations
COMMAND = [sys.executable, "-c", "from controller.main import main; main()"]


class Server:
    """A controller process."""

    def __init__(self, url: str, token: str, ca: Path) -> None:
        self.url = url
        self.headers = {"authorization": f"Bearer {token}"}
        self.ca = str(ca)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("openapi") / "state"
    with (
        (state.parent / "log").open("wb") as log,
        subprocess.Popen(
            [*COMMAND, "serve", "--state-dir", str(state), "--listen", "127.0.0.1:0", "--log-level", "warning"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout
            token = process.stdout.readline().split()[-1]
            url = process.stdout.readline().split()[-1]
            yield Server(url, token, state / "ca.pem")
        finally:
            process.terminate()
            process.wait(20)


def test_answers_are_as_documented(server: Server, subtests: pytest.Subtests) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/api/v1/openapi.json", verify=server.ca)
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == len(list(schema.get_all_operations()))
    assert len(operations) > 20
    for operation, mode in itertools.product(operations, GenerationMode):
        with subtests.test(operation=operation.label, mode=mode):
            try_operation(server, operation, mode)


def try_operation(server: Server, operation: Any, mode: GenerationMode) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(
            base_url=server.url,
            headers=server.headers,
            verify=server.ca,
            # A schema cannot say that a key is a point on a curve, or that a name is free; and the check of
            # authentication sends our header again (test_api.py has its own).
            excluded_checks=[positive_data_acceptance, ignored_auth],
        )

    try:
        call()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is no wrong way to ask for /health
