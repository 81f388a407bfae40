"""A host that stops reading, over TLS and from a real controller: costs little, disturbs nobody, is ended, goes on."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from controller.settings import Settings
from controller.wire.stream import PROTOCOL, STREAM_PATH, Applied, DeltaFrame

from ..hosts import Host, new_key, wireguard_key
from ..streams import Agent, node_id
from .process import Controller, started

PEERS = 60
CHANGES = 80
ENDPOINTS = [f"[2001:db8:ffff:ffff:ffff:ffff:ffff:ff{number:02x}]:51820" for number in range(64)]
# Seconds. In 8 it is changed so often that a queue without a bound would be seen.
PINGS = {"controller.server._PING_EVERY": 1.0, "controller.server._PING_WITHIN": 8.0}
MEGABYTE = 1024 * 1024
POLICIES = 'grants: [{from: ["node:slow", "node:quick"], to: ["*"], ip: ["tcp:1"]}]', "grants: []"


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Controller]:
    async with started(Settings(state_dir=tmp_path / "state"), tmp_path / "log", PINGS) as running:
        yield running


@pytest.fixture
async def admin(controller: Controller) -> AsyncIterator[httpx.AsyncClient]:
    """With enough static peers that each change of the policy below is a large frame."""
    async with controller.client() as client:
        for number in range(PEERS):
            body = {"name": f"peer-{number}", "public_key": wireguard_key(), "endpoints": ENDPOINTS}
            assert (await client.post("/static-peers", json=body)).is_success
        yield client


@asynccontextmanager
async def stream(controller: Controller, host: Host, directory: Path) -> AsyncIterator[Agent]:
    """An agent whose kernel takes little that it does not read itself."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", controller.port))
    async with connect(
        f"wss://127.0.0.1:{controller.port}{STREAM_PATH}",
        sock=plain,
        ssl=host.presenting(controller.trust(), directory),
        subprotocols=[Subprotocol(PROTOCOL)],
        compression=None,
        close_timeout=1,
    ) as opened:
        yield Agent(opened, host)


async def changed(admin: httpx.AsyncClient, number: int) -> int:
    """Give both hosts all peers, or take them; the revision that this made."""
    answer = await admin.put("/policy", json={"text": POLICIES[number % 2]}, headers={"if-match": "*"})
    assert answer.is_success, answer.text
    return int(answer.json()["revision"])


async def reached(agent: Agent, revision: int) -> None:
    """Wait, for some seconds, until this host has the revision, and acknowledge it."""
    await agent.take_until(lambda netmap: netmap.revision >= revision)
    await agent.say(Applied(revision=revision))


def memory(controller: Controller) -> float:
    """Resident, in megabytes."""
    return float(psutil.Process(controller.pid).memory_info().rss) / MEGABYTE


def is_connected(controller: Controller, port: int) -> bool:
    found = psutil.Process(controller.pid).net_connections(kind="tcp")
    return any(one.raddr and one.raddr.port == port for one in found)


async def test_a_host_that_stops_reading_costs_little_disturbs_nobody_and_goes_on_when_it_comes_back(
    controller: Controller, admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    slow, quick = Host("slow"), Host("quick")
    for host in (slow, quick):
        await host.enrol(admin, await new_key(admin))
    async with stream(controller, quick, tmp_path) as reader:
        await reader.hello()
        async with stream(controller, slow, tmp_path) as stopped:
            await stopped.hello()
            for number in range(20):  # what a first change costs, and the next ones do not
                revision = await changed(admin, number)
                for agent in (reader, stopped):
                    await reached(agent, revision)
            stopped.socket.transport.pause_reading()
            port = stopped.socket.local_address[1]
            before = memory(controller)
            for number in range(CHANGES):
                await reached(reader, await changed(admin, number))
            assert memory(controller) - before < 2.5, "megabytes"
            async with asyncio.timeout(25):
                while (await admin.get(f"/nodes/{node_id(slow)}")).json()["online"] or is_connected(controller, port):
                    await asyncio.sleep(0.1)
            held = stopped.netmap
        assert (await admin.get(f"/nodes/{node_id(quick)}")).json()["behind"] is False
        async with stream(controller, slow, tmp_path) as back, stream(controller, slow, tmp_path) as another:
            assert isinstance(await back.hello(held), DeltaFrame)
            await another.hello()
            assert back.netmap == another.netmap != held
