"""The gateway that agentd starts itself: as whom, with what rights, until when, and again."""

import asyncio
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentd.config import Config
from agentd.errors import AgentError
from agentd.gateway_process import GatewayProcess, gateway_user
from controller.wire.mcp import HttpUpstream
from controller.wire.netmap import Netmap
from tests.gateway.agent import HELD, Agent, netmap, refused_at
from tests.gateway.harness import Lab, free_port, soon, tool
from tests.lab.revealed import revealed

START = 30.0
USER = "nobody"


pytestmark = pytest.mark.usefixtures("root")


class Daemon:
    """The parts of agentd that a gateway of its own needs."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.config = Config(state_dir=directory / "agentd", socket=directory / "agentd.sock", gateway=USER, **settings)
        self.agent = Agent(self.config.socket)
        self.user = gateway_user(self.config)
        self.gateway = GatewayProcess(self.config, self.user, self.agent.serving)
        self.agent.wake = self.gateway.wake

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Daemon"]:
        await self.agent.start(gateway_user=self.user.uid, group=self.user.gid)
        task = asyncio.create_task(self.gateway.run())
        try:
            yield self
        finally:
            assert not task.done(), task.exception()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.agent.stop()

    async def process(self, *, other_than: int = 0) -> psutil.Process:
        def found() -> int | None:
            return next((one.process for one in self.agent.serving.followers if one.process != other_than), None)

        return psutil.Process(await soon(found, START))


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that other users may pass through, on a machine whose Python they may run."""
    with tempfile.TemporaryDirectory(prefix="gateway-") as made, revealed():
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def daemon(directory: Path) -> AsyncIterator[Daemon]:
    async with Daemon(directory).running() as made:
        yield made


def some_map(port: int = 0, **more: Any) -> Netmap:
    return netmap(port or free_port(), HttpUpstream(url="http://127.0.0.1:9/mcp"), **more)


def privileged_port() -> int:
    """A free one that only root, or who has a capability for it, may listen at."""
    limit = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    for port in range(limit - 1, 0, -1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HELD, port))
            except OSError:
                continue
            return port
    return pytest.fail(
        "net.ipv4.ip_unprivileged_port_start is 0: use tests/run, whose network namespace has Linux's own"
    )


async def test_it_serves_a_privileged_port_with_no_privilege(lab: Lab, daemon: Daemon) -> None:
    upstream, port = await lab.upstream(), privileged_port()
    daemon.agent.serving.adopt(netmap(port, HttpUpstream(url=f"http://127.0.0.1:{upstream.port}/mcp")))
    process = await daemon.process()
    await soon(lambda: daemon.agent.serving.health() == {"svc": None}, START)
    client = await lab.connect(HELD, port)
    assert (await client.call(tool())).status == 200
    await client.close()
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    facts = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    assert facts["Uid"] == [str(daemon.user.uid)] * 4
    assert facts["Gid"] == [str(daemon.user.gid)] * 4
    assert {int(facts[name][0], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
    assert facts["NoNewPrivs"] == ["1"]
    assert daemon.config.gateway_dir.stat().st_uid == daemon.user.uid


async def test_there_is_no_process_while_nothing_is_served(daemon: Daemon) -> None:
    daemon.agent.serving.adopt(some_map(services={}, calls={}))
    daemon.agent.serving.adopt(some_map(revision=2))
    process = await daemon.process()
    daemon.agent.serving.adopt(some_map(revision=3, services={}, calls={}))
    await soon(lambda: not process.is_running(), START)
    assert daemon.agent.serving.problem is None


async def test_it_is_started_again_when_it_dies(daemon: Daemon) -> None:
    daemon.agent.serving.adopt(some_map())
    first = await daemon.process()
    first.send_signal(signal.SIGKILL)
    second = await daemon.process(other_than=first.pid)
    assert second.pid != first.pid


async def test_a_gateway_that_cannot_start_is_said_and_tried_again(daemon: Daemon) -> None:
    daemon.config.gateway_dir.write_text("")
    daemon.agent.serving.adopt(some_map())
    await soon(lambda: "ended with exit code 1" in (daemon.agent.serving.health()["svc"] or ""), START)
    daemon.config.gateway_dir.unlink()
    await daemon.process()


async def test_it_ends_with_the_daemon(directory: Path) -> None:
    async with Daemon(directory).running() as daemon:
        port = free_port()
        daemon.agent.serving.adopt(some_map(port))
        process = await daemon.process()
        await soon(lambda: not refused_at(port), START)
    assert not process.is_running()


async def test_it_has_the_workers_spool_and_grace_that_the_configuration_names(directory: Path) -> None:
    settings = {"gateway_workers": 2, "gateway_spool_size": 7, "gateway_grace": 0.5}
    async with Daemon(directory, **settings).running() as daemon:
        daemon.agent.serving.adopt(some_map())
        await soon(lambda: {one.worker for one in daemon.agent.serving.followers} == {0, 1}, START)
        workers = [psutil.Process(one.process) for one in daemon.agent.serving.followers]
        (parent,) = {worker.ppid() for worker in workers}
        for process in (psutil.Process(parent), *workers):
            command = process.cmdline()
            assert {name: command[command.index(name) + 1] for name in ("--workers", "--spool-size", "--grace")} == {
                "--workers": "2",
                "--spool-size": "7",
                "--grace": "0.5",
            }
        assert {path.name for path in (daemon.config.gateway_dir / "spool").iterdir()} == {"0", "1"}


async def test_who_leaves_takes_its_files_along(daemon: Daemon) -> None:
    daemon.agent.serving.adopt(some_map())
    process = await daemon.process()
    assert await daemon.gateway.end() == [f"remove {daemon.config.gateway_dir}"]
    assert not process.is_running()
    assert not daemon.config.gateway_dir.exists()


async def called(lab: Lab, daemon: Daemon) -> None:
    """One call of a tool, answered a moment ago."""
    upstream, port = await lab.upstream(), free_port()
    daemon.agent.serving.adopt(netmap(port, HttpUpstream(url=f"http://127.0.0.1:{upstream.port}/mcp")))
    await daemon.process()
    await soon(lambda: daemon.agent.serving.health() == {"svc": None}, START)
    client = await lab.connect(HELD, port)
    assert (await client.call(tool())).status == 200
    await client.close()


async def test_who_leaves_ships_what_was_recorded_first(lab: Lab, daemon: Daemon) -> None:
    daemon.agent.keeps = True
    await called(lab, daemon)
    await daemon.gateway.pause()
    assert {record.event for record in daemon.agent.kept} == {"gateway:call:allowed", "gateway:call:ended"}
    assert await daemon.gateway.end() == [f"remove {daemon.config.gateway_dir}"]


async def test_records_that_nobody_took_are_counted_when_they_are_removed(lab: Lab, daemon: Daemon) -> None:
    await called(lab, daemon)
    await daemon.gateway.pause()
    (removed,) = await daemon.gateway.end()
    assert removed.endswith(", with 2 records of calls that the controller does not have")


async def test_who_does_not_leave_after_all_serves_again(daemon: Daemon) -> None:
    daemon.agent.serving.adopt(some_map())
    first = await daemon.process()
    await daemon.gateway.pause()
    assert not first.is_running()
    daemon.gateway.resume()
    assert (await daemon.process(other_than=first.pid)).is_running()


@pytest.mark.parametrize(
    ("user", "sentence"),
    [("root", "has agentd's own rights"), ("no-such-user", "there is no user 'no-such-user': make it with")],
)
def test_a_user_that_will_not_do_is_refused(user: str, sentence: str) -> None:
    with pytest.raises(AgentError, match=sentence):
        gateway_user(Config(gateway=user))
