"""The mesh's DNS responder on real sockets, asked by dig; and what systemd-resolved is told of it."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentd.config import Config
from agentd.dns import Zone
from agentd.dns_server import DnsError, DnsServer
from agentd.naming import Naming
from agentd.resolved import Resolved, ResolvedError, is_asked
from controller.wire.netmap import Mesh, Netmap, SelfNode
from tests.gateway.harness import free_port

ZONE = Zone("mesh.internal", {"github.mesh.internal": ("100.80.1.1", "fd00::1:1")})
PATIENCE = 30.0
MESH = Mesh(id="m1", name="test", domain="mesh.internal", prefix4="100.80.0.0/16", prefix6="fd00::/64")
REGISTERED = [
    "dns mesh0 127.0.0.1:{port}",
    "domain mesh0 ~mesh.internal",
    "default-route mesh0 no",
    "dnssec mesh0 no",
    "dnsovertls mesh0 no",
]
# In resolvectl's place, as no test machine runs systemd: writes down what it is told, or refuses.
RESOLVECTL = """#!/bin/sh
if [ -e {directory}/refuse ]; then echo "not you" >&2; exit 1; fi
echo "$@" >>{directory}/told
"""


async def dig(port: int, *arguments: str) -> list[str]:
    """What dig says, a line each."""
    command = ("dig", "-r", "@127.0.0.1", "-p", str(port), "+time=10", "+tries=1", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    return said.decode().splitlines()


async def status(port: int, *arguments: str) -> str:
    (line,) = [line for line in await dig(port, *arguments) if "status: " in line]
    return line.partition("status: ")[2].partition(",")[0]


@pytest.fixture
async def server() -> AsyncIterator[tuple[DnsServer, int]]:
    made = DnsServer(ZONE)
    port = await made.start("127.0.0.1", free_port())
    yield made, port
    await made.close()


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
async def test_a_resolver_gets_addresses_of_both_families(server: tuple[DnsServer, int], transport: str) -> None:
    _, port = server
    assert await dig(port, transport, "+short", "github.mesh.internal", "A") == ["100.80.1.1"]
    assert await dig(port, transport, "+short", "GITHUB.mesh.internal", "AAAA") == ["fd00::1:1"]


async def test_a_resolver_reads_what_is_not_there_and_what_is_not_ours(server: tuple[DnsServer, int]) -> None:
    _, port = server
    assert await status(port, "nobody.mesh.internal") == "NXDOMAIN"
    assert await status(port, "github.mesh.internal", "MX") == "NOERROR"
    assert await status(port, "example.com") == "REFUSED"
    assert await status(port, "+opcode=notify", "mesh.internal") == "NOTIMP"
    (soa,) = await dig(port, "+short", "mesh.internal", "SOA")
    assert soa == "mesh.internal. hostmaster.mesh.internal. 0 3600 600 86400 5"


async def test_changed_names_are_answered_at_once(server: tuple[DnsServer, int]) -> None:
    responder, port = server
    responder.zone = Zone("mesh.internal", {"db.mesh.internal": ("100.80.0.2",)})
    assert await dig(port, "+short", "db.mesh.internal") == ["100.80.0.2"]
    assert await status(port, "github.mesh.internal") == "NXDOMAIN"


async def test_connections_are_bounded_and_an_ended_one_makes_room(server: tuple[DnsServer, int]) -> None:
    _, port = server
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(64)]
    reader, _ = await asyncio.open_connection("127.0.0.1", port)
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    for _, writer in opened:
        writer.write(b"\xff\xff")  # longer than any question
    for reader, writer in opened:
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()
    assert await dig(port, "+tcp", "+short", "github.mesh.internal", "A") == ["100.80.1.1"]


async def test_a_port_that_is_taken_is_named_with_the_remedy(server: tuple[DnsServer, int]) -> None:
    _, port = server
    with pytest.raises(DnsError, match=rf"127\.0\.0\.1:{port} .*set dns to another port"):
        await DnsServer(ZONE).start("127.0.0.1", port)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What resolvectl was told, a line a call."""
    program = tmp_path / "bin" / "resolvectl"
    program.parent.mkdir()
    program.write_text(RESOLVECTL.format(directory=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("agentd.naming.is_asked", lambda: True)
    told = tmp_path / "told"
    told.touch()
    return told


@pytest.mark.parametrize(
    ("resolv_conf", "runs", "asked"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", True, True),
        ("# stub\nnameserver   127.0.0.53\n", True, True),
        ("nameserver 127.0.0.53\n", False, False),
        ("nameserver 192.0.2.53\n", True, False),
        ("# nameserver 127.0.0.53\n", True, False),
    ],
)
def test_systemd_resolved_counts_where_it_runs_and_programs_ask_it(
    tmp_path: Path, resolv_conf: str, runs: bool, asked: bool
) -> None:
    conf, socket = tmp_path / "resolv.conf", tmp_path / "socket"
    conf.write_text(resolv_conf)
    if runs:
        socket.touch()
    assert is_asked(conf, socket) is asked


async def test_a_refusal_is_told_with_its_words_and_the_remedy(tmp_path: Path, told: Path) -> None:
    (tmp_path / "refuse").touch()
    with pytest.raises(ResolvedError, match=r"resolvectl dns mesh0 .*: not you\): let agentd's user"):
        await Resolved("mesh0").register("127.0.0.1:5354", "mesh.internal")
    assert told.read_text() == ""


def kept(config: Config) -> Naming:
    naming = Naming(config)
    node = SelfNode(id="n0", name="here", addresses=("100.80.0.1",))
    naming.adopt(Netmap(revision=1, mesh=MESH, node=node, names={"github": ("100.80.1.1",)}))
    return naming


async def ended(running: asyncio.Task[None]) -> None:
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_where_systemd_resolved_is_asked_names_are_in_the_hosts_file_only_while_we_are_away(
    tmp_path: Path, told: Path
) -> None:
    port, hosts = free_port(), tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n# BEGIN wardmesh mesh0\n# END wardmesh mesh0\n")
    naming = kept(Config(link="mesh0", dns=f"127.0.0.1:{port}", hosts_file=hosts, socket=tmp_path / "agentd.sock"))
    running = asyncio.create_task(naming.run())
    expected = [line.format(port=port) for line in REGISTERED]
    async with asyncio.timeout(PATIENCE):
        while told.read_text().splitlines() != expected or "BEGIN" in hosts.read_text():
            await asyncio.sleep(0.02)
    assert await dig(port, "+short", "github.mesh.internal") == ["100.80.1.1"]
    assert naming.problem is None
    await ended(running)
    assert told.read_text().splitlines() == [*expected, "revert mesh0"]
    assert "100.80.1.1 github.mesh.internal\n" in hosts.read_text()


async def test_who_leaves_takes_back_what_systemd_resolved_was_told(tmp_path: Path, told: Path) -> None:
    hosts = tmp_path / "hosts"
    naming = kept(Config(dns=f"127.0.0.1:{free_port()}", hosts_file=hosts, socket=tmp_path / "agentd.sock"))
    running = asyncio.create_task(naming.run())
    async with asyncio.timeout(PATIENCE):
        while len(told.read_text().splitlines()) < len(REGISTERED):
            await asyncio.sleep(0.02)
    await naming.end()
    await ended(running)
    assert told.read_text().splitlines()[len(REGISTERED) :] == ["revert wardmesh0"]
    assert not hosts.exists()


async def test_a_refusal_leaves_the_names_in_the_hosts_file(tmp_path: Path, told: Path) -> None:
    (tmp_path / "refuse").touch()
    hosts = tmp_path / "hosts"
    naming = kept(Config(dns=f"127.0.0.1:{free_port()}", hosts_file=hosts, socket=tmp_path / "agentd.sock"))
    running = asyncio.create_task(naming.run())
    async with asyncio.timeout(PATIENCE):
        while not hosts.exists():
            await asyncio.sleep(0.02)
    assert "100.80.0.1 here.mesh.internal\n" in hosts.read_text()
    assert "not you" in (naming.problem or "")
    await ended(running)
    assert told.read_text() == ""
