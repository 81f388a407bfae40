"""The official suite says the same of a server, and of a client, with the gateway in between and without it."""

import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from controller.wire.mcp import HttpUpstream, StdioUpstream

from .allowed import NOT_RUN, unexplained
from .processes import ROOT, conformance_tools, fixture_server, gateway
from .suite import Suite, compare

REVISIONS = ("2026-07-28", "2025-11-25")
# So many checks pass, direct: fewer means that the fixture, not the gateway, lost something.
DIRECT_PASSES = {"2026-07-28": 163, "2025-11-25": 84}

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(conformance_tools())


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_server_scores_the_same_through_the_gateway(suite: Suite, revision: str, tmp_path: Path) -> None:
    with fixture_server() as url:
        direct = suite.server(url, revision, tmp_path / "direct")
        with gateway(tmp_path / "gateway", HttpUpstream(url=url)) as running:
            through = suite.server(running.url, revision, tmp_path / "through")
    print(f"\ndirect\n{direct.summary}\n\nthrough the gateway\n{through.summary}")
    assert direct.scored_ok, direct.summary
    assert direct.count("SUCCESS") >= DIRECT_PASSES[revision]
    assert unexplained("server", revision, compare(direct, through)) == []
    assert through.scored_ok


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_server_on_standard_input_and_output_scores_what_it_scores_over_http(
    suite: Suite, revision: str, tmp_path: Path
) -> None:
    with fixture_server() as url:
        direct = suite.server(url, revision, tmp_path / "direct")
    command = (sys.executable, "-m", "tests.conformance.fixture.server", "--stdio")
    upstream = StdioUpstream(command=command, directory=str(ROOT), per="caller")
    with gateway(tmp_path / "gateway", upstream) as running:
        through = suite.server(running.url, revision, tmp_path / "through")
    print(f"\nthrough the gateway, from standard input and output\n{through.summary}")
    assert unexplained("stdio", revision, compare(direct, through)) == []
    assert through.scored_ok


def scenarios() -> list[tuple[str, str]]:
    suite = Suite(conformance_tools())
    return [
        (revision, scenario)
        for revision in REVISIONS
        for scenario in suite.client_scenarios(revision)
        if not any(fnmatchcase(scenario, pattern) for pattern in NOT_RUN)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scenario" in metafunc.fixturenames:
        metafunc.parametrize(("revision", "scenario"), scenarios())


def test_a_client_scores_the_same_through_the_gateway(
    suite: Suite, revision: str, scenario: str, tmp_path: Path
) -> None:
    direct = suite.client("tests.conformance.fixture.client", scenario, revision, tmp_path / "direct")
    through = suite.client("tests.conformance.through", scenario, revision, tmp_path / "through")
    assert direct.count("SUCCESS") > 0, direct.summary
    assert direct.count("FAILURE") == 0, direct.summary
    assert unexplained("client", revision, compare(direct, through), scenario) == []
    assert through.scored_ok == direct.scored_ok, through.summary
