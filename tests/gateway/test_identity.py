"""Who callers are, as agentd's own local API says; and what holds while it cannot be asked."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.errors import AgentError
from agentd.gateway.identity import AgentIdentity
from agentd.local_api import Answer, Identity, Request, WhoisRequest
from agentd.local_server import listening, serve
from tests.gateway.agent import conversations
from tests.gateway.harness import ALICE, BOB, BOUND, KEY, STRANGER, Lab, soon, tool

NODES = {ALICE: "alice", BOB: "bob"}


class Agent:
    """agentd's own server of the local API, with a map of two nodes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nodes = dict(NODES)
        self.held: dict[str, tuple[str, ...]] = {}  # addresses of services held here, and this host's own
        self.asked: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._serve(ready))
        await ready.wait()

    async def stop(self) -> None:
        if self._task is not None:
            talks = conversations()
            for task in (self._task, *talks):
                task.cancel()
            await asyncio.gather(self._task, *talks, return_exceptions=True)
            self._task = None

    async def _serve(self, ready: asyncio.Event) -> None:
        with listening(self.path, None) as server:
            ready.set()
            await serve(server, self._answer, lambda _answer: None)

    async def _answer(self, request: Request) -> Answer:
        assert isinstance(request, WhoisRequest)
        self.asked.append(request.address)
        await self.hold.wait()
        name = self.nodes.get(request.address)
        if name is None:
            raise AgentError(f"{request.address} is nobody")
        return Identity(
            address=request.address,
            node=f"node-{name}",
            name=name,
            fqdn=f"{name}.mesh.internal",
            tags=("tag:agents",),
            public_key="xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
            kind="agent",
            is_self=request.address in self.held,
            addresses=self.held.get(request.address, (request.address,)),
        )


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    made = Agent(tmp_path / "agentd.sock")
    await made.start()
    yield made
    await made.stop()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_callers_are_who_agentd_says(agent: Agent) -> None:
    identity = AgentIdentity(agent.path)
    caller = await identity.whois(ALICE)
    assert caller is not None
    assert (caller.node_id, caller.name, caller.tags, caller.address) == ("node-alice", "alice", ("tag:agents",), ALICE)
    assert caller.public_key != KEY
    assert await identity.whois(STRANGER) is None
    await identity.close()


async def test_a_process_of_this_host_is_judged_by_the_hosts_own_addresses(agent: Agent) -> None:
    own = ("100.80.0.7", "fd00:1234::7")
    identity = AgentIdentity(agent.path)
    for asked, addresses, expected in (
        ("100.80.9.1", own, own[0]),
        ("fd00:1234::9:1", own, own[1]),
        (own[1], own, own[1]),
        ("fd00:1234::9:2", own[:1], own[0]),
    ):
        agent.nodes[asked], agent.held[asked] = "this-host", addresses
        caller = await identity.whois(asked)
        assert caller is not None
        assert (caller.name, caller.address) == ("this-host", expected)
    await identity.close()


async def test_a_question_is_asked_once_in_a_while(agent: Agent) -> None:
    clock = Clock()
    identity = AgentIdentity(agent.path, fresh=5, clock=clock)
    assert identity.known(ALICE) is None
    await asyncio.gather(*(identity.whois(ALICE) for _ in range(50)))
    assert agent.asked == [ALICE]
    assert identity.known(ALICE) is not None
    clock.now += 6
    assert identity.known(ALICE) is None
    await identity.whois(ALICE)
    assert agent.asked == [ALICE] * 2
    identity.invalidate()
    await identity.whois(ALICE)
    assert agent.asked == [ALICE] * 3
    await identity.close()


async def test_who_was_removed_is_nobody_at_the_next_question(agent: Agent) -> None:
    clock = Clock()
    identity = AgentIdentity(agent.path, fresh=5, refused=1, clock=clock)
    assert await identity.whois(BOB) is not None
    del agent.nodes[BOB]
    clock.now += 6
    assert await identity.whois(BOB) is None
    agent.nodes[BOB] = "bob"
    assert await identity.whois(BOB) is None, "a refusal is remembered too"
    clock.now += 2
    assert await identity.whois(BOB) is not None
    await identity.close()


async def test_a_restart_of_agentd_is_not_noticed(agent: Agent) -> None:
    clock = Clock()
    identity = AgentIdentity(agent.path, clock=clock)
    assert await identity.whois(ALICE) is not None
    await agent.stop()
    await agent.start()
    clock.now += 60
    assert await identity.whois(ALICE) is not None
    await identity.close()


async def test_while_agentd_is_away_the_last_answer_stands_for_a_while(agent: Agent) -> None:
    clock = Clock()
    identity = AgentIdentity(agent.path, fresh=5, grace=60, clock=clock)
    assert await identity.whois(ALICE) is not None
    await agent.stop()
    clock.now += 50
    assert await identity.whois(ALICE) is not None
    assert await identity.whois(BOB) is None, "nobody vouches for who was not known"
    clock.now += 60
    assert await identity.whois(ALICE) is None
    await agent.start()
    assert await identity.whois(ALICE) is not None
    await identity.close()


async def test_garbage_instead_of_agentd_vouches_for_nobody(tmp_path: Path) -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"answer":"identity","node":"root"}\n')
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(garbage, tmp_path / "s")
    async with server:
        identity = AgentIdentity(tmp_path / "s")
        assert await identity.whois(ALICE) is None
        await identity.close()


async def test_a_flood_of_addresses_is_bounded(agent: Agent) -> None:
    identity = AgentIdentity(agent.path, most=8)
    await identity.whois(ALICE)
    for number in range(20):
        await identity.whois(f"192.0.2.{number}")
    assert len(identity._remembered) == 8
    await identity.close()


async def test_the_gateway_serves_who_agentd_knows(lab: Lab, agent: Agent) -> None:
    running = await lab.gateway(await lab.upstream(), identity=AgentIdentity(agent.path, fresh=0.1, refused=0.1))
    client = await lab.client(running)
    assert (await client.call(tool())).status == 200
    stranger = await lab.client(running, STRANGER)
    stranger.writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert await stranger.rest() == b""
    del agent.nodes[ALICE]
    await asyncio.sleep(0.2)
    client.send("POST", *tool())
    assert await client.rest() == b""


async def test_a_client_that_goes_while_agentd_thinks_leaves_nothing(lab: Lab, agent: Agent) -> None:
    agent.hold.clear()
    running = await lab.gateway(await lab.upstream(), identity=AgentIdentity(agent.path))
    client = await lab.client(running)
    client.send("POST", *tool())
    await soon(lambda: agent.asked)
    client.vanish()
    await asyncio.sleep(0.05)
    agent.hold.set()
    other = await lab.client(running)
    assert (await asyncio.wait_for(other.call(tool()), BOUND)).status == 200
