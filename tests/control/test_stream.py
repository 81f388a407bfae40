"""The agents' stream, end to end: a real controller, real TLS, real WebSocket clients. No agentd."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller import server
from controller.server import Running, running
from controller.settings import Settings
from controller.wire.stream import (
    Applied,
    Bye,
    DeltaFrame,
    Report,
    Snapshot,
)

from .hosts import Host, new_node, wireguard_key
from .streams import POLICY, agent, delete, node_id, patch, seen
from .support import Client, MovableClock


async def test_an_agent_gets_its_map_and_then_what_changes(
    controller: Running, admin: Client, anyone: Client, caller: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        first = await there.hello()
        assert isinstance(first, Snapshot)
        assert first.netmap.node.id == node_id(caller)
        assert first.netmap.peers == {}
        tool = await new_node(admin, anyone, "tool", tags=["tag:tools"])
        netmap = await there.take_until(lambda m: bool(m.peers))
        assert netmap.peers[node_id(tool)].public_key == tool.public_key
        assert netmap.sets["tag:tools"].addresses == set(netmap.peers[node_id(tool)].addresses)
        assert netmap == controller.context.hub.netmap(node_id(caller))
        other = await new_node(admin, anyone, "other", tags=["tag:other"])
        await delete(admin, tool)
        netmap = await there.take_until(lambda m: not m.peers)
        assert node_id(other) not in netmap.peers


async def test_for_how_long_a_host_has_been_behind_is_known_over_rest_and_to_monitoring(
    controller: Running, admin: Client, caller: Host, tool: Host, tmp_path: Path, clock: MovableClock
) -> None:
    async def said() -> tuple[float | None, float | None, float]:
        node = (await admin.get(f"/nodes/{node_id(caller)}")).json()
        metrics = (await admin.get(admin.base_url.copy_with(path="/metrics"))).text
        (line,) = (line for line in metrics.splitlines() if line.startswith("wardmesh_agents_lag_seconds "))
        return node["lag"], (await admin.get("/status")).json()["lag"], float(line.partition(" ")[2])

    assert await said() == (None, None, 0), "it is away"
    async with agent(controller, caller, tmp_path) as there:
        await there.hello()
        assert there.netmap is not None
        await there.say(Applied(revision=there.netmap.revision))
        await seen(admin, caller, lambda n: n["in_force"] is not None)
        assert await said() == (None, None, 0)
        for name in ("first", "second"):
            await patch(admin, tool, name=name)
            clock.advance(hours=1)
        assert all(7200 <= (lag or 0) < 7500 for lag in await said())
        netmap = await there.take_until(lambda m: "second" in {p.name for p in m.peers.values()})
        await there.say(Applied(revision=netmap.revision))
        await seen(admin, caller, lambda n: not n["behind"])
        assert await said() == (None, None, 0)


async def test_what_is_in_force_is_known_over_rest(
    controller: Running, admin: Client, caller: Host, tool: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.hello(backend="userspace")
        assert there.netmap is not None
        await there.say(Applied(revision=there.netmap.revision))
        node = await seen(admin, caller, lambda n: n["in_force"] is not None)
        assert node["online"]
        assert node["in_force"] == there.netmap.revision
        assert node["backend"] == "userspace"
        await patch(admin, tool, name="renamed")
        await there.take_until(lambda m: "renamed" in {p.name for p in m.peers.values()})
        assert (await admin.get("/status")).json()["behind"] == 1
        await there.say(Applied(revision=there.netmap.revision, error="nft refused the table"))
        node = await seen(admin, caller, lambda n: n["error"] is not None)
        assert node["error"] == "nft refused the table"
        await there.say(Applied(revision=there.netmap.revision))
        await seen(admin, caller, lambda n: n["error"] is None)
        assert (await admin.get("/status")).json()["behind"] == 0
    await seen(admin, caller, lambda n: not n["online"])


async def test_both_hosts_learn_each_others_key_and_endpoint(
    controller: Running, caller: Host, tool: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as one, agent(controller, tool, tmp_path) as other:
        await one.hello(endpoints=("192.0.2.1:51820",))
        await other.hello(endpoints=("192.0.2.2:51820",))
        await one.take_until(lambda m: "192.0.2.2:51820" in m.peers[node_id(tool)].endpoints)
        tool.public_key = wireguard_key()
        await other.say(Report(report=other.report(endpoints=("192.0.2.3:51820",))))
        netmap = await one.take_until(lambda m: "192.0.2.3:51820" in m.peers[node_id(tool)].endpoints)
        assert netmap.peers[node_id(tool)].public_key == tool.public_key


async def test_an_agent_that_comes_back_gets_one_delta(
    controller: Running, admin: Client, anyone: Client, caller: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.hello()
        held = there.netmap
    for number in range(3):
        await new_node(admin, anyone, f"tool{number}", tags=["tag:tools"])
    async with agent(controller, caller, tmp_path) as back:
        first = await back.hello(held)
        assert isinstance(first, DeltaFrame)
        assert len(first.delta.peers) == 3
        assert back.netmap == controller.context.hub.netmap(node_id(caller))


@pytest.mark.parametrize("version", ["the same", "another"])
async def test_an_agent_that_comes_back_to_a_restarted_controller_of_the_same_version_is_continued(
    settings: Settings, clock: MovableClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    async with (
        running(settings, clock) as first,
        Client(first, token=first.first_token) as admin,
        Client(first) as anyone,
    ):
        await admin.put("/policy", json={"text": POLICY}, headers={"if-match": "*"})
        host = await new_node(admin, anyone, "caller", tags=["tag:agents"])
        gone = await new_node(admin, anyone, "gone", tags=["tag:tools"])
        async with agent(first, host, tmp_path) as there:
            await there.hello()
            held = there.netmap
        await delete(admin, gone)
        tool = await new_node(admin, anyone, "tool", tags=["tag:tools"])
    if version == "another":
        monkeypatch.setattr(server, "VERSION", "99.0")
    async with running(settings, clock) as second, agent(second, host, tmp_path) as back:
        answer = await back.hello(held)
        assert isinstance(answer, DeltaFrame if version == "the same" else Snapshot)
        assert back.netmap == second.context.hub.netmap(node_id(host))
        assert back.netmap is not None
        assert set(back.netmap.peers) == {node_id(tool)}


async def test_a_second_stream_of_the_same_node_replaces_the_first(
    controller: Running, admin: Client, caller: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as first:
        await first.hello()
        async with agent(controller, caller, tmp_path) as second:
            assert isinstance(await second.hello(), Snapshot)
            assert (await first.bye()).reason == "replaced"
            await second.say(Applied(revision=second.netmap.revision if second.netmap else 0))
            await seen(admin, caller, lambda n: n["online"] and n["in_force"] is not None)


async def test_a_removed_node_is_told_and_not_let_in_again(
    controller: Running, admin: Client, caller: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.hello()
        await delete(admin, caller)
        bye = await there.bye()
        assert (bye.reason, bye.retry) == ("removed", False)
    async with agent(controller, caller, tmp_path) as again:
        assert isinstance(await again.hello(), Bye)


async def test_a_disabled_node_is_told_and_comes_back_when_it_is_enabled(
    controller: Running, admin: Client, caller: Host, tool: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there, agent(controller, tool, tmp_path) as peer:
        await there.hello()
        await peer.hello()
        await patch(admin, caller, state="disabled")
        bye = await there.bye()
        assert (bye.reason, bye.retry) == ("disabled", True)
        await peer.take_until(lambda m: not m.peers)
        held = there.netmap
        async with agent(controller, caller, tmp_path) as refused:
            frame = await refused.hello()
            assert isinstance(frame, Bye)
            assert frame.reason == "disabled"
        await patch(admin, caller, state="active")
        async with agent(controller, caller, tmp_path) as back:
            await back.hello(held)
            assert back.netmap is not None
            assert node_id(tool) in back.netmap.peers


async def test_a_node_that_waits_for_approval_sees_itself_only(
    controller: Running, admin: Client, anyone: Client, tool: Host, put_policy: Callable[[str], Any], tmp_path: Path
) -> None:
    await put_policy(POLICY)
    waiting = await new_node(admin, anyone, "waiting", tags=["tag:agents"], approved=False)
    async with agent(controller, waiting, tmp_path) as there:
        first = await there.hello()
        assert isinstance(first, Snapshot)
        assert (first.netmap.peers, first.netmap.rules) == ({}, {})
        await patch(admin, waiting, state="active")
        netmap = await there.take_until(lambda m: bool(m.peers))
        assert netmap.peers.keys() == {node_id(tool)}


async def test_a_policy_that_is_replaced_reaches_the_host(
    controller: Running, caller: Host, tool: Host, put_policy: Callable[[str], Any], tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.hello()
        await put_policy("grants: []")
        netmap = await there.take_until(lambda m: not m.peers)
        assert (netmap.rules, netmap.sets) == ({}, {})


async def test_a_controller_that_stops_says_so(settings: Settings, clock: MovableClock, tmp_path: Path) -> None:
    async with running(settings, clock) as controller:
        async with Client(controller, token=controller.first_token) as admin, Client(controller) as anyone:
            host = await new_node(admin, anyone, "caller")
        manager = agent(controller, host, tmp_path)
        there = await manager.__aenter__()
        await there.hello()
    try:
        bye = await there.bye()
        assert (bye.reason, bye.retry) == ("shutdown", True)
    finally:
        await manager.__aexit__(None, None, None)
