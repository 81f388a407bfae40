"""Several controllers on one PostgreSQL: one mesh, whichever of them an agent or an admin talks to.

Most run two controllers in this process; those that are killed, or race at their first start, are real processes.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from agentd.session import Phase
from controller.mesh.connection import Connection
from controller.server import Running, running
from controller.settings import Listen, Settings
from controller.wire.stream import Applied, DeltaFrame

from .agents import Agent as AgentdParts
from .agents import connected, joined
from .agents import until as agentd_until
from .databases import Databases
from .hosts import Host, new_key, new_node
from .serving import POLICY as SERVICE_POLICY
from .serving import all_healthy, held_by, is_healthy, server
from .serving import until as service_until
from .streams import POLICY, Agent, agent, node_id, patch
from .support import Client, MovableClock
from .test_policy_use import put
from .test_process import Process, serve

PATIENCE = 40.0  # seconds; a controller that died is missed after eight


@dataclass(frozen=True)
class Pair:
    """Two controllers, with an admin's client of each."""

    one: Running
    two: Running
    admin: Client
    other_admin: Client


def copy_ca(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for name in ("ca.pem", "ca.key"):
        shutil.copy(source / name, target / name)


@pytest.fixture
async def pair(tmp_path: Path, clock: MovableClock, postgresql: Databases) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(postgresql())
        listen = Listen("127.0.0.1", 0)
        one = await stack.enter_async_context(running(Settings(tmp_path / "one", listen, database_url=url), clock))
        copy_ca(tmp_path / "one", tmp_path / "two")
        two = await stack.enter_async_context(running(Settings(tmp_path / "two", listen, database_url=url), clock))
        assert two.first_token is None
        admin = await stack.enter_async_context(Client(one, token=one.first_token))
        other_admin = await stack.enter_async_context(Client(two, token=one.first_token))
        yield Pair(one, two, admin, other_admin)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while not await condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE} s: {what}")


async def node_at(admin: httpx.AsyncClient, host: Host) -> dict[str, Any]:
    answer = await admin.get(f"/nodes/{node_id(host)}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def acknowledge(its: Agent) -> None:
    assert its.netmap is not None
    await its.say(Applied(revision=its.netmap.revision))


@asynccontextmanager
async def caller_at_the_other(pair: Pair, directory: Path) -> AsyncIterator[tuple[Host, Agent, Client]]:
    """A host that policy lets call tools, connected to the second controller; and who may enrol at the first."""
    await put(pair.admin, POLICY)
    async with Client(pair.one) as anyone:
        caller = await new_node(pair.admin, anyone, "caller", tags=["tag:agents"])
        async with agent(pair.two, caller, directory) as its:
            await its.hello()
            yield caller, its, anyone


async def test_what_one_controller_commits_reaches_the_agents_of_the_other(pair: Pair, tmp_path: Path) -> None:
    async with caller_at_the_other(pair, tmp_path) as (caller, its, anyone):
        tool = await new_node(pair.admin, anyone, "tool", tags=["tag:tools"])
        await its.take_until(lambda netmap: node_id(tool) in netmap.peers)
        await patch(pair.admin, tool, tags=[])
        netmap = await its.take_until(lambda netmap: not netmap.peers)
        await until(lambda: same_map(pair, caller), "both have the same map")
        assert netmap == pair.two.context.hub.netmap(node_id(caller))


async def same_map(pair: Pair, host: Host) -> bool:
    one, two = (running.context.hub.netmap(node_id(host)) for running in (pair.one, pair.two))
    return one == two


async def test_each_controller_says_of_every_host_whether_it_is_online_and_what_it_has_in_force(
    pair: Pair, tmp_path: Path
) -> None:
    async with caller_at_the_other(pair, tmp_path) as (caller, its, anyone):
        await new_node(pair.admin, anyone, "tool", tags=["tag:tools"])
        await its.take_until(lambda netmap: bool(netmap.peers))

        async def is_behind() -> bool:
            found = await node_at(pair.admin, caller)
            return bool(found["online"] and found["behind"])

        await until(is_behind, "the first controller says that it is online, and behind")
        await acknowledge(its)

        async def in_force() -> bool:
            found = await node_at(pair.admin, caller)
            assert its.netmap is not None
            return found["in_force"] == its.netmap.revision and not found["behind"]

        await until(in_force, "the first controller says that it has the map in force")
        explained = await pair.admin.get("/policy/explain?from=caller&to=tool&port=tcp:443")
        assert pair.two.url in explained.json()["source"]["kernel"]["why"]

    async def is_offline() -> bool:
        return not (await node_at(pair.admin, caller))["online"]

    await until(is_offline, "the first controller says that it is offline")


async def test_a_change_is_never_taken_for_in_force_on_a_host_of_the_other_controller_before_it_is(
    pair: Pair, tmp_path: Path
) -> None:
    async with caller_at_the_other(pair, tmp_path) as (caller, its, anyone):
        await acknowledge(its)

        async def is_current() -> bool:
            found = await node_at(pair.admin, caller)
            return bool(found["online"] and not found["behind"])

        await until(is_current, "it is current")
        await new_node(pair.admin, anyone, "tool", tags=["tag:tools"])
        for _ in range(20):
            assert not await is_current()
        await its.take_until(lambda netmap: bool(netmap.peers))
        await acknowledge(its)
        await until(is_current, "it is current again")


async def test_a_stream_at_one_controller_replaces_that_at_the_other(pair: Pair, tmp_path: Path) -> None:
    async with Client(pair.one) as anyone:
        host = await new_node(pair.admin, anyone, "host")
        async with agent(pair.one, host, tmp_path) as first:
            await first.hello()
            async with agent(pair.two, host, tmp_path) as second:
                await second.hello()
                assert (await first.bye()).reason == "replaced"

                async def is_online() -> bool:
                    return bool((await node_at(pair.admin, host))["online"])

                await until(is_online, "it is online at the second")
                assert not pair.one.context.hub.here(node_id(host)).online


async def test_writers_on_both_controllers_keep_keys_addresses_and_audit_right(pair: Pair) -> None:
    async with Client(pair.one) as anyone, Client(pair.two) as anyone_there:
        one_shot = await new_key(pair.admin, uses=1)
        racing = [Host(f"race{number}") for number in range(6)]
        answers = await asyncio.gather(
            *(host.ask((anyone, anyone_there)[at % 2], one_shot) for at, host in enumerate(racing))
        )
        assert sorted(answer.status_code for answer in answers).count(200) == 1
        again = {"idempotency-key": "the same at both"}
        made = await asyncio.gather(
            *(client.post("/enrolment-keys", json={}, headers=again) for client in (pair.admin, pair.other_admin))
        )
        assert made[0].json() == made[1].json()
        reusable = await new_key(pair.admin, uses=100)
        await asyncio.gather(
            *(Host(f"n{at}").enrol((anyone, anyone_there)[at % 2], reusable) for at in range(12)),
        )
    store = pair.one.context.store
    async with store.read() as tables:
        numbers = [node.number for node in await tables.nodes.all()]
        entries = await tables.ledger.audit_after(0)
    assert len(numbers) == len(set(numbers)) == 13
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))

    async def both_know() -> bool:
        newest = len(entries)
        return all(running.context.hub.revision == newest for running in (pair.one, pair.two))

    await until(both_know, "both controllers took in everything")


async def test_a_service_moves_between_hosts_of_different_controllers_by_one_decision(
    pair: Pair, tmp_path: Path
) -> None:
    async with Client(pair.one) as anyone, AsyncExitStack() as stack:
        hosts = {name: await new_node(pair.admin, anyone, name, tags=["tag:tools"]) for name in ("here", "there")}
        await put(pair.admin, SERVICE_POLICY)
        first = AsyncExitStack()
        await first.enter_async_context(server(pair.one, hosts["here"], tmp_path))
        await service_until(pair.admin, lambda found: found["holder"] == "here" and is_healthy(found))
        await stack.enter_async_context(server(pair.two, hosts["there"], tmp_path))
        await service_until(pair.admin, all_healthy)
        await service_until(pair.other_admin, all_healthy)
        await first.aclose()
        for admin in (pair.admin, pair.other_admin):
            await service_until(admin, held_by("there"))
        moves = (await pair.admin.get("/audit?action=system:service:move")).json()["items"]
        assert [entry["new"]["holder"] for entry in moves] == ["there", "here"]


class TestProcesses:
    async def test_of_two_first_starts_on_an_empty_database_one_makes_the_mesh(
        self, tmp_path: Path, postgresql: Databases
    ) -> None:
        async with postgresql() as url:
            environment = {"WARDMESH_DATABASE_URL": url}
            states = [tmp_path / name for name in ("one", "two")]

            async def start(state: Path) -> bool:
                try:
                    async with serve(state=state, environment=environment):
                        return True
                except AssertionError:
                    return False

            assert sorted(await asyncio.gather(*map(start, states))) == [False, True]
            loser = next(state for state in states if "ca.pem and ca.key" in state.with_suffix(".log").read_text())
            winner = next(state for state in states if state is not loser)
            assert not (loser / "ca.key").exists()
            for name in ("ca.pem", "ca.key"):
                shutil.copy(winner / name, loser / name)
            assert await start(loser)

    async def test_an_agent_of_a_controller_that_was_killed_goes_on_at_another_without_a_snapshot(
        self, tmp_path: Path, postgresql: Databases
    ) -> None:
        async with AsyncExitStack() as stack:
            environment = {"WARDMESH_DATABASE_URL": await stack.enter_async_context(postgresql())}
            first = await stack.enter_async_context(serve(state=tmp_path / "one", environment=environment))
            copy_ca(tmp_path / "one", tmp_path / "two")
            second = await stack.enter_async_context(serve(state=tmp_path / "two", environment=environment))
            token = first.token
            here, there = (as_running(process, tmp_path / "one", token) for process in (first, second))
            admin = await stack.enter_async_context(Client(there, token=token))
            anyone = await stack.enter_async_context(Client(there))
            await put(admin, POLICY)
            caller = await new_node(admin, anyone, "caller", tags=["tag:agents"])

            async def is_online() -> bool:
                return bool((await node_at(admin, caller))["online"])

            async with agent(here, caller, tmp_path) as its:
                await its.hello()
                await until(is_online, "the second knows of the first's agent")
                first.running.kill()
                await first.running.wait()
                tool = await new_node(admin, anyone, "tool", tags=["tag:tools"])
                held = its.netmap

            async def is_offline() -> bool:
                return not await is_online()

            await until(is_offline, "the second misses the first, and with it its agent")
            began = time.monotonic()
            async with agent(there, caller, tmp_path) as its:
                assert isinstance(await its.hello(held), DeltaFrame)
                assert its.netmap is not None
                assert set(its.netmap.peers) == {node_id(tool)}
            assert time.monotonic() - began < PATIENCE

    async def test_an_agentd_whose_controller_is_killed_goes_on_at_another_and_comes_back_after_both_were_away(
        self, tmp_path: Path, clock: MovableClock, postgresql: Databases, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshots: list[str] = []
        make = Connection._snapshot

        def counted(its: Connection) -> Any:
            snapshots.append(its.node_id)
            return make(its)

        monkeypatch.setattr(Connection, "_snapshot", counted)
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(postgresql())
            environment = {"WARDMESH_DATABASE_URL": url}
            process = await stack.enter_async_context(serve(state=tmp_path / "one", environment=environment))
            first = as_running(process, tmp_path / "one", process.token)
            copy_ca(tmp_path / "one", tmp_path / "two")
            settings = Settings(tmp_path / "two", Listen("127.0.0.1", 0), database_url=url)
            async with Client(first, token=first.first_token) as admin:
                state = await joined(admin, tmp_path, "db-1")
            async with connected(state) as its, AsyncExitStack() as second:
                two = await second.enter_async_context(running(settings, clock))
                await agentd_until(lambda: set(state.controllers()) == {first.url, two.url}, PATIENCE)
                assert its.control.standing.url == first.url
                process.running.kill()
                await agentd_until(lambda: its.control.standing.url == two.url and is_streaming(its), PATIENCE)
                async with Client(two, token=first.first_token) as admin, Client(two) as anyone:
                    await put(admin, "grants: [{from: '*', to: '*', ip: ['*']}]")
                    await new_node(admin, anyone, "other")
                await agentd_until(lambda: "other" in its.peers, PATIENCE)
                assert snapshots == []
                await second.aclose()
                await agentd_until(lambda: not is_streaming(its), PATIENCE)
                again = replace(settings, listen=Listen("127.0.0.1", two.port))
                await second.enter_async_context(running(again, clock))
                await agentd_until(lambda: is_streaming(its), PATIENCE)
                assert snapshots == []


def is_streaming(its: AgentdParts) -> bool:
    return its.standing is Phase.STREAMING


def as_running(process: Process, state: Path, token: str) -> Any:
    """A controller process, as the tests of controllers in this process see theirs."""
    authority = SimpleNamespace(pem=(state / "ca.pem").read_text())
    context = SimpleNamespace(authority=authority)
    return SimpleNamespace(url=process.url, port=int(process.url.rsplit(":", 1)[1]), context=context, first_token=token)
