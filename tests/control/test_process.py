"""The `wardmesh-controller` command as people and systemd run it: real processes, files, signals, exits."""

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from controller.main import app
from controller.server import running
from controller.settings import Listen, Settings

from .databases import Databases

COMMAND = [sys.executable, "-c", "from controller.main import main; main()"]


@dataclass
class Process:
    """A controller that said it is ready."""

    running: asyncio.subprocess.Process
    url: str
    output: list[str] = field(default_factory=list)

    @property
    def token(self) -> str:
        found = re.search(r"wma_\S+", "\n".join(self.output))
        assert found is not None, self.output
        return found[0]

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.running.send_signal(number)
        return await asyncio.wait_for(self.running.wait(), 20)


@asynccontextmanager
async def serve(*arguments: str, state: Path, environment: dict[str, str] | None = None) -> AsyncIterator[Process]:
    with (state.parent / f"{state.name}.log").open("ab") as log:
        running = await asyncio.create_subprocess_exec(
            *COMMAND,
            "serve",
            "--state-dir",
            str(state),
            *(() if "--listen" in arguments else ("--listen", "127.0.0.1:0")),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
    process = Process(running, "")
    try:
        assert running.stdout
        while not process.url:
            line = (await asyncio.wait_for(running.stdout.readline(), 30)).decode().rstrip()
            assert line or running.returncode is None, (state.parent / f"{state.name}.log").read_text()
            assert line, (state.parent / f"{state.name}.log").read_text()
            process.output.append(line)
            if line.startswith("ready "):
                process.url = line.removeprefix("ready ")
        yield process
    finally:
        if running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                running.kill()
            await running.wait()


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", **(environment or {})},
    )


def client(process: Process, state: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=process.url,
        verify=ssl.create_default_context(cafile=str(state / "ca.pem")),
        headers={"authorization": f"Bearer {process.token}"},
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


class TestServe:
    async def test_first_start_prints_a_token_that_works_and_the_second_prints_none(self, state: Path) -> None:
        async with serve(state=state) as first:
            async with client(first, state) as admin:
                assert (await admin.get("/api/v1/status")).status_code == 200
                token = first.token
            assert await first.stop() == 0
        async with serve(state=state) as second:
            assert not re.search(r"wma_", "\n".join(second.output))
            second.output.append(token)
            async with client(second, state) as admin:
                assert (await admin.get("/api/v1/status")).status_code == 200
        assert token not in (state.parent / "state.log").read_text()

    async def test_files_are_private(self, state: Path) -> None:
        async with serve(state=state):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()}
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        assert set(modes.values()) == {0o600}, modes
        assert {"controller.db", "ca.pem", "ca.key", "tls.pem", "tls.key", "lock"} <= set(modes)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_stops_at_a_signal(self, state: Path, number: signal.Signals) -> None:
        async with serve(state=state) as process:
            assert await process.stop(number) == 0

    async def test_survives_being_killed(self, state: Path) -> None:
        async with serve(state=state) as first:
            token = first.token
            async with client(first, state) as admin:
                assert (await admin.post("/api/v1/enrolment-keys", json={})).status_code == 201
            assert await first.stop(signal.SIGKILL) == -signal.SIGKILL
        async with serve(state=state) as second:
            second.output.append(token)
            async with client(second, state) as admin:
                assert len((await admin.get("/api/v1/enrolment-keys")).json()["items"]) == 1

    async def test_a_second_one_on_the_state_directory_is_refused(self, state: Path) -> None:
        async with serve(state=state) as first:
            second = await asyncio.to_thread(run, "serve", "--state-dir", str(state), "--listen", "127.0.0.1:0")
            assert second.returncode == 1
            assert f"another controller (process {first.running.pid}) uses the state directory" in second.stderr
            assert await first.stop() == 0

    async def test_listens_on_ipv6(self, state: Path) -> None:
        async with serve("--listen", "[::1]:0", state=state) as process, client(process, state) as admin:
            assert re.fullmatch(r"https://\[::1\]:\d+", process.url)
            assert (await admin.get("/api/v1/health")).status_code == 200

    async def test_listens_on_both_families_at_the_unspecified_address(self, state: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        url = f"https://127.0.0.1:{port}"
        async with (
            serve("--listen", f"[::]:{port}", "--url", url, state=state) as process,
            client(process, state) as admin,
        ):
            assert (await admin.get("/api/v1/health")).status_code == 200
            assert (await admin.get(f"https://[::1]:{port}/api/v1/health")).status_code == 200

    async def test_mesh_facts_are_fixed_at_first_start(self, state: Path) -> None:
        facts = ("--mesh-name", "lab", "--prefix4", "10.99.0.0/24", "--prefix6", "fd99:1:2::/48")
        async with serve(*facts, state=state) as process, client(process, state) as admin:
            mesh = (await admin.get("/api/v1/status")).json()["mesh"]
            assert (mesh["name"], mesh["prefix4"], mesh["prefix6"]) == ("lab", "10.99.0.0/24", "fd99:1:2::/48")
        async with serve(*facts, state=state):
            pass
        for option, value in (("--mesh-name", "x"), ("--prefix4", "10.98.0.0/24"), ("--prefix6", "fd98::/48")):
            refused = run("serve", "--state-dir", str(state), "--listen", "127.0.0.1:0", option, value)
            assert refused.returncode == 1
            assert f"{option} {value}: this mesh was made with" in refused.stderr

    async def test_serves_from_postgresql_and_refuses_a_second_controller_with_another_ca(
        self, tmp_path: Path, postgresql: Databases
    ) -> None:
        async with postgresql() as url:
            environment = {"WARDMESH_DATABASE_URL": url}
            one, two = tmp_path / "one", tmp_path / "two"
            async with serve(state=one, environment=environment) as process:
                async with client(process, one) as admin:
                    assert (await admin.post("/api/v1/enrolment-keys", json={})).status_code == 201
                assert not (one / "controller.db").exists()
                arguments = ("serve", "--state-dir", str(two), "--listen", "127.0.0.1:0")
                other_ca = await asyncio.to_thread(run, *arguments, environment=environment)
                assert other_ca.returncode == 1
                assert "put its ca.pem and ca.key there" in other_ca.stderr
                assert await process.stop() == 0


class TestBadStarts:
    """In this process: a new one for each would spend its time on imports."""

    @pytest.fixture(autouse=True)
    def _own_logging(self) -> Iterator[None]:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        yield
        root.handlers[:] = handlers
        root.setLevel(level)

    def refused(self, *arguments: str) -> str:
        done = CliRunner().invoke(app, ["serve", *arguments])
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)
        assert done.stdout == ""
        return done.stderr

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--listen", "nonsense"], "write it like 0.0.0.0:8443"),
            (["--listen", "192.0.2.1:8443"], "this machine has no such address"),
            (["--url", "http://x"], "write it like https://"),
            (["--url", "https://x/path"], "with no path"),
            (["--url", "https://x:99999"], "write it like https://"),
            (["--mesh-name", "Not A Label"], "not a DNS label"),
            (["--prefix4", "10.0.0.0/31"], "prefix length"),
            (["--prefix6", "2001:db8::/48"], "unique local"),
            (["--tls-cert", "/nowhere/cert.pem"], "belong together"),
            (["--tls-cert", "/nowhere/cert.pem", "--tls-key", "/nowhere/key.pem"], "/nowhere/cert.pem"),
            (["--tls-ca", "/nowhere/ca.pem"], "--tls-cert"),
            (["--trusted-proxy", "nonsense"], "write an address or a prefix"),
            (["--database-url", "mysql://x"], "use sqlite or postgresql"),
            (["--database-url", "nonsense"], "cannot be read"),
            (["--database-url", "postgresql://u:hunter2@127.0.0.1:1/x"], "cannot be reached"),
            (["--log-level", "loud"], "choose debug"),
        ],
    )
    def test_say_one_sentence(self, state: Path, arguments: list[str], says: str) -> None:
        error = self.refused("--state-dir", str(state), "--listen", "127.0.0.1:0", *arguments)
        [line] = [line for line in error.splitlines() if line.startswith("wardmesh-controller: ")]
        assert says in line
        assert "hunter2" not in error

    def test_a_port_in_use(self, state: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            error = self.refused("--state-dir", str(state), "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert "another program listens there" in error

    def test_a_state_directory_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "cannot use the state directory" in self.refused("--state-dir", str(tmp_path / "file" / "x"))

    def test_a_damaged_ca(self, state: Path) -> None:
        state.mkdir()
        (state / "ca.pem").write_text("nonsense")
        (state / "ca.key").write_text("nonsense")
        assert "restore ca.pem and ca.key" in self.refused("--state-dir", str(state), "--listen", "127.0.0.1:0")

    def test_a_damaged_database(self, state: Path) -> None:
        state.mkdir()
        (state / "controller.db").write_text("this is not a database, " * 100)
        assert "file is not a database" in self.refused("--state-dir", str(state), "--listen", "127.0.0.1:0")

    def test_a_lost_ca(self, state: Path) -> None:
        async def start_once() -> None:
            async with running(Settings(state_dir=state, listen=Listen("127.0.0.1", 0))):
                pass

        asyncio.run(start_once())
        (state / "ca.key").unlink()
        assert "has ca.pem but not ca.key" in self.refused("--state-dir", str(state), "--listen", "127.0.0.1:0")

    async def test_a_half_done_first_start_is_completed(self, state: Path) -> None:
        """Killed after the CA was written and before the mesh was: the next start takes that CA."""
        async with serve(state=state) as first:
            assert await first.stop() == 0
        ca = (state / "ca.pem").read_text()
        for path in state.glob("controller.db*"):
            path.unlink()
        async with serve(state=state) as second:
            assert second.token
        assert (state / "ca.pem").read_text() == ca


class TestOtherCommands:
    async def test_token_create_works_beside_a_running_controller(self, state: Path) -> None:
        async with serve(state=state) as process:
            made = await asyncio.to_thread(
                run, "token", "create", "--state-dir", str(state), "--role", "read", "--note", "ci"
            )
            assert made.returncode == 0, made.stderr
            process.output[:] = [made.stdout]
            async with client(process, state) as reader:
                assert (await reader.get("/api/v1/nodes")).status_code == 200
                assert (await reader.post("/api/v1/tokens", json={})).status_code == 403
                audit = (await reader.get("/api/v1/audit")).json()["items"]
            assert (audit[0]["action"], audit[0]["actor"]) == ("admin:token:create", "system")

    def test_token_create_needs_a_mesh(self, state: Path) -> None:
        done = run("token", "create", "--state-dir", str(state))
        assert (done.returncode, done.stdout) == (1, "")
        assert "`wardmesh-controller serve` makes one" in done.stderr
        assert not state.exists()

    def test_migrate_can_be_repeated(self, state: Path) -> None:
        first, second = (run("migrate", "--state-dir", str(state)) for _ in range(2))
        assert "was empty" in first.stdout
        assert "nothing to do" in second.stdout

    async def test_migrate_is_refused_beside_a_running_controller(self, state: Path) -> None:
        async with serve(state=state):
            done = await asyncio.to_thread(run, "migrate", "--state-dir", str(state))
        assert done.returncode == 1
        assert "another controller" in done.stderr

    async def test_audit_verify_finds_what_was_altered(self, state: Path) -> None:
        async with serve(state=state) as process:
            assert await process.stop() == 0
        good = run("audit", "verify", "--state-dir", str(state))
        assert (good.returncode, good.stdout.split(",")[0]) == (0, "2 entries")
        with contextlib.closing(sqlite3.connect(state / "controller.db")) as database:
            database.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 1")
            database.commit()
        bad = run("audit", "verify", "--state-dir", str(state))
        assert bad.returncode == 1
        assert "audit entry 1: its content was altered" in bad.stderr

    @pytest.mark.parametrize("command", [["serve"], ["migrate"], ["token", "create"], ["audit", "verify"]])
    def test_help_has_an_example(self, command: list[str]) -> None:
        shown = run(*command, "--help")
        assert shown.returncode == 0
        assert "wardmesh-controller " + " ".join(command) in shown.stdout.replace("\n", " ")


def test_a_host_without_the_extra_is_told_what_to_install(tmp_path: Path) -> None:
    # As on a host with wardmesh[agentd] alone: the web framework is not there.
    missing = "import sys; sys.modules['starlette'] = None; from controller.start import main; main()"
    command = [sys.executable, "-c", missing, "serve", "--state-dir", str(tmp_path / "state")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "wardmesh[controller]" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_logs_as_json_are_one_object_a_line_with_the_requests_id_and_no_secret(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with serve("--log-format", "json", state=state) as process:
        async with httpx.AsyncClient(
            base_url=process.url.replace(re.findall(r"//([^:/]+)", process.url)[0], "127.0.0.1"),
            verify=ssl.create_default_context(cafile=str(state / "ca.pem")),
        ) as client:
            answer = await client.get("/api/v1/nodes?name=a", headers={"authorization": f"Bearer {process.token}"})
            assert answer.status_code == 200
        token = process.token
        assert await process.stop() == 0
    text = (tmp_path / "state.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    (served,) = (line for line in lines if line.get("path") == "/api/v1/nodes")
    assert served["request"] == answer.headers["x-request-id"]
    assert (served["method"], served["status"], served["level"]) == ("GET", 200, "info")
    assert served["milliseconds"] > 0
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert token not in text


async def test_a_log_format_that_is_none_is_refused() -> None:
    refused = run("serve", "--log-format", "xml")
    assert (refused.returncode, refused.stderr) == (
        1,
        "wardmesh-controller: --log-format xml: choose plain or json\n",
    )
