"""What a start of each program imports: nobody waits for a web server to be loaded for a line of help."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SERVER = frozenset({"sqlalchemy", "alembic", "asyncpg", "aiosqlite", "fastapi", "starlette", "uvicorn", "websockets"})
KERNEL = frozenset({"pyroute2"})
CRYPTOGRAPHY = frozenset({"cryptography"})
CONTRACT = frozenset({"pydantic", "controller.wire"})
EXTRAS = frozenset({"opentelemetry", "prometheus_client", "wireguard_tools", "yaml", "segno", "mako"})
HTTP = frozenset({"httpx", "ssl", "http.client"})


def imported(program: str, *arguments: str | Path) -> frozenset[str]:
    """The modules that a process of this program has imported when it ends."""
    command = [sys.executable, "-X", "importtime", BIN / program, *arguments]
    nowhere = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"}  # so that nobody is logged in
    ended = subprocess.run(command, env=nowhere, capture_output=True, text=True, check=False)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
    found = frozenset(line.rpartition("|")[2].strip() for line in lines)
    assert "typer" in found, ended.stderr
    return found


def unwanted(modules: Iterable[str], packages: Iterable[str]) -> set[str]:
    return {package for package in packages for module in modules if f"{module}.".startswith(f"{package}.")}


@pytest.mark.parametrize(
    ("command", "without"),
    [
        (
            "wardmesh --help",
            SERVER | KERNEL | CRYPTOGRAPHY | CONTRACT | HTTP | EXTRAS | {"asyncio", "importlib.metadata"},
        ),
        ("wardmesh --version", SERVER | KERNEL | CRYPTOGRAPHY | CONTRACT | HTTP | EXTRAS | {"asyncio", "rich"}),
        ("wardmesh node list", SERVER | KERNEL | CRYPTOGRAPHY | EXTRAS),
        ("wardmesh-controller --help", SERVER | KERNEL | CRYPTOGRAPHY | EXTRAS | {"controller.wire.rest"}),
        ("wardmesh-controller serve --log-level loud", SERVER | KERNEL | CRYPTOGRAPHY | EXTRAS),
        ("agentd --help", SERVER | KERNEL | CRYPTOGRAPHY | HTTP | EXTRAS | {"asyncio"}),
        ("agentd --socket /nonexistent/socket peers", SERVER | KERNEL | HTTP | EXTRAS | {"asyncio"}),
        ("wardmesh-gateway --help", SERVER | KERNEL | EXTRAS | {"httpx"}),
    ],
)
def test_a_command_imports_nothing_of_what_others_need(command: str, without: frozenset[str]) -> None:
    assert unwanted(imported(*command.split()), without) == set()


def test_a_controller_imports_the_migrations_machinery_only_when_there_is_something_to_migrate(tmp_path: Path) -> None:
    command = ("wardmesh-controller", "migrate", "--state-dir", tmp_path / "state")
    assert [unwanted(imported(*command), {"alembic"}) for _ in range(2)] == [{"alembic"}, set()]
