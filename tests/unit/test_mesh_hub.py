"""The hub: connections, presence, and what each agent is sent; with agents that are plain coroutines."""

import asyncio
import time

import pytest

from controller.mesh import Hub, RefusedError
from controller.mesh import connection as connection_module
from controller.mesh.log import RevisionLog
from controller.records import Change, NodeRecord, PolicyRecord
from controller.wire.stream import Applied, Bye, ControllerFrame, DeltaFrame, Snapshot

from .mesh_agents import Agent, agent, hello, netmap, until
from .mesh_fleet import NOW, fleet, key, node, temporary

POLICY = "grants: [{from: tag:agents, to: tag:tools, ip: [tcp:443]}]"


NODES = [node(1, "agents"), node(2, "agents"), node(3, "tools"), node(7)]


@pytest.fixture
def hub() -> Hub:
    made = Hub(lambda: NOW)
    made.load(fleet(NODES, POLICY, revision=5))
    return made


async def test_an_agent_without_a_map_gets_a_snapshot_and_then_deltas(hub: Hub) -> None:
    async with agent(hub, 3) as tools:
        await until(tools.has(5))
        hub.publish(Change(6, {"n8": node(8, "agents")}))
        await until(tools.has(6))
        assert [type(frame).__name__ for frame in tools.frames] == ["Snapshot", "DeltaFrame"]
        assert tools.netmap == netmap(hub, 3)


async def test_an_agent_that_a_change_does_not_concern_hears_nothing(hub: Hub) -> None:
    async with agent(hub, 7) as other, agent(hub, 3) as tools:
        await until(other.has(5))
        hub.publish(Change(6, {"n8": node(8, "agents")}))
        await until(tools.has(6))
        assert len(other.frames) == 1
        hub.publish(Change(7, {"n7": node(7, "agents")}))
        await until(other.has(7))
        assert isinstance(other.frames[-1], DeltaFrame)
        assert other.frames[-1].delta.base == 5
        assert other.netmap == netmap(hub, 7)


async def fall_behind(hub: Hub, slow: Agent) -> None:
    """Nearly three hundred changes while it takes nothing, and then it takes what there is."""
    await until(slow.has(5))
    slow.gate.clear()
    for revision in range(6, 300):
        hub.publish(Change(revision, {f"n{revision}": node(revision, "agents")}))
        await asyncio.sleep(0)
    slow.gate.set()
    await until(slow.has(299))


async def test_a_slow_agent_gets_many_changes_as_one_delta(hub: Hub) -> None:
    async with agent(hub, 3) as tools:
        await fall_behind(hub, tools)
        assert len(tools.frames) <= 3
        assert tools.netmap == netmap(hub, 3)


async def test_a_very_slow_agent_gets_a_snapshot_in_the_end(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_PENDING", 50)
    async with agent(hub, 3) as tools:
        await fall_behind(hub, tools)
        assert isinstance(tools.frames[-1], Snapshot)
        assert tools.netmap == netmap(hub, 3)


async def test_an_agent_that_comes_back_gets_one_delta_from_where_it_was(hub: Hub) -> None:
    held = netmap(hub, 3)
    for revision in range(6, 12):
        hub.publish(Change(revision, {f"n{revision}": node(revision, "agents")}))
    hub.publish(Change(12, {"n6": None}))
    async with agent(hub, 3, 5, held=held) as tools:
        await until(tools.has(12))
        assert [type(frame) for frame in tools.frames] == [DeltaFrame]
        assert tools.netmap == netmap(hub, 3)


async def test_an_agent_that_missed_nothing_is_told_so(hub: Hub) -> None:
    held = netmap(hub, 7)
    hub.publish(Change(6, {"n8": node(8, "agents")}))
    async with agent(hub, 7, 5, held=held) as other:
        await until(other.has(6))
        assert isinstance(other.frames[0], DeltaFrame)
        assert other.frames[0].delta.is_empty()


@pytest.mark.parametrize(
    ("revision", "mesh"), [(4, "mesh1"), (99, "mesh1"), (5, "mesh2"), (5, None), (None, "mesh1"), (None, None)]
)
async def test_a_map_that_cannot_be_continued_is_replaced(hub: Hub, revision: int | None, mesh: str | None) -> None:
    async with agent(hub, 3, revision, mesh=mesh) as tools:
        await until(tools.has(5))
        assert isinstance(tools.frames[0], Snapshot)


async def test_a_map_from_before_a_late_change_is_replaced(hub: Hub) -> None:
    hub.publish(Change(7, {"n8": node(8, "agents")}))
    held = netmap(hub, 3)
    hub.publish(Change(6, {"n9": node(9, "agents")}))
    async with agent(hub, 3, 7, held=held) as tools:
        await until(lambda: bool(tools.frames))
        assert isinstance(tools.frames[0], Snapshot)
        assert tools.netmap == netmap(hub, 3)


async def test_a_connected_agent_gets_a_late_change_too(hub: Hub) -> None:
    async with agent(hub, 3) as tools:
        hub.publish(Change(7, {"n8": node(8, "agents")}))
        await until(tools.has(7))
        hub.publish(Change(6, {"n9": node(9, "agents")}))
        await until(lambda: tools.netmap == netmap(hub, 3))
        assert {"n8", "n9"} <= netmap(hub, 3).peers.keys()


async def test_the_second_connection_of_a_node_replaces_the_first(hub: Hub) -> None:
    async with agent(hub, 3) as first:
        await until(first.has(5))
        async with agent(hub, 3) as second:
            await until(lambda: len(first.frames) == 2)
            assert first.bye.reason == "replaced"
            await until(second.has(5))
            hub.applied(first.connection, Applied(revision=5))
            assert hub.presence("n3").in_force is None
        assert not hub.presence("n3").online


async def test_closing_a_replaced_connection_leaves_the_new_one_alone(hub: Hub) -> None:
    async with agent(hub, 3):
        async with asyncio.timeout(5):
            first = hub.connected("n3", hello(3))
            with first:
                async with agent(hub, 3) as newest:
                    await until(newest.has(5))
                    assert hub.presence("n3").online
        hub.publish(Change(6, {"n8": node(8, "agents")}))


@pytest.mark.parametrize(
    ("record", "reason", "retry"), [(None, "removed", False), (node(3, "tools", state="disabled"), "disabled", True)]
)
async def test_who_is_removed_or_disabled_is_told_and_not_let_in_again(
    hub: Hub, record: NodeRecord | None, reason: str, retry: bool
) -> None:
    async with agent(hub, 3) as tools:
        await until(tools.has(5))
        hub.publish(Change(6, {"n3": record}))
        await until(lambda: len(tools.frames) == 2)
        assert (tools.bye.reason, tools.bye.retry) == (reason, retry)
        await tools.connection.finished()
    with pytest.raises(RefusedError) as caught:
        hub.admit("n3")
    assert caught.value.bye.reason == reason


async def test_a_disabled_node_continues_when_it_is_enabled_again(hub: Hub) -> None:
    held = netmap(hub, 3)
    hub.publish(Change(6, {"n3": node(3, "tools", state="disabled")}))
    hub.publish(Change(7, {"n3": node(3, "tools")}))
    async with agent(hub, 3, 5, held=held) as tools:
        await until(tools.has(7))
        assert tools.netmap == netmap(hub, 3)


async def test_a_node_that_waits_for_approval_is_connected_and_sees_nobody(hub: Hub) -> None:
    hub.publish(Change(6, {"n8": node(8, "agents", state="pending")}))
    async with agent(hub, 8) as waiting:
        await until(waiting.has(6))
        assert waiting.netmap is not None
        assert waiting.netmap.peers == {}
        hub.publish(Change(7, {"n8": node(8, "agents")}))
        await until(waiting.has(7))
        assert waiting.netmap.peers.keys() == {"n3"}


@pytest.mark.parametrize("node_id", ["nobody", "n9"])
async def test_who_is_no_agent_of_the_mesh_is_refused(hub: Hub, node_id: str) -> None:
    hub.publish(Change(6, {"n9": node(9, kind="static")}))
    with pytest.raises(RefusedError) as caught, hub.connected(node_id, hello(9)):
        pass
    assert (caught.value.bye.reason, caught.value.bye.retry) == ("removed", False)
    assert not hub.presence(node_id).online


async def test_presence_says_what_is_in_force_and_who_is_behind(hub: Hub) -> None:
    assert not hub.presence("n3").online
    async with agent(hub, 3) as tools:
        await until(tools.has(5))
        assert hub.presence("n3").behind
        hub.applied(tools.connection, Applied(revision=5))
        now = hub.presence("n3")
        assert (now.online, now.in_force, now.behind, now.backend, now.agent_version) == (
            True,
            5,
            False,
            "userspace",
            "0.1",
        )
        hub.publish(Change(6, {"n7": node(7, "other")}))
        assert not hub.presence("n3").behind
        hub.publish(Change(7, {"n8": node(8, "agents")}))
        assert hub.presence("n3").behind
        await until(tools.has(7))
        hub.applied(tools.connection, Applied(revision=7, error="nft refused"))
        assert (hub.presence("n3").in_force, hub.presence("n3").error) == (5, "nft refused")
        assert hub.presence("n3").behind
        hub.applied(tools.connection, Applied(revision=7))
        assert (hub.presence("n3").in_force, hub.presence("n3").error) == (7, None)
        assert not hub.presence("n3").behind
    gone = hub.presence("n3")
    assert (gone.online, gone.in_force, gone.behind) == (False, 7, False)
    assert gone.last_seen is not None


@pytest.mark.parametrize(
    "changes",
    [
        [Change(6, {}, policy=PolicyRecord(6, POLICY.replace("443", "444")))],
        [Change(6, {}, grants={"t1": temporary(1, "tag:agents", "tag:tools")})],
        [Change(6, {}, grants={"t1": temporary(1, "tag:agents", "tag:tools")}), Change(7, {}, grants={"t1": None})],
        [Change(revision, {"n8": node(8, "agents")}) for revision in range(6, 107)],
    ],
)
async def test_hosts_that_are_too_far_back_to_be_continued_after_a_restart_are_brought_up(
    hub: Hub, changes: list[Change]
) -> None:
    async with agent(hub, 7) as other:
        await until(other.has(5))
        for change in changes:
            hub.publish(change)
        hub.bring_up()
        await until(other.has(hub.revision))
        hub.bring_up()
        await asyncio.sleep(0)
        assert len(other.frames) == 2


async def test_hosts_that_can_be_continued_after_a_restart_are_left_alone(hub: Hub) -> None:
    async with agent(hub, 7) as other:
        await until(other.has(5))
        hub.publish(Change(6, {"n8": node(8, "agents")}))
        hub.bring_up()
        hub.publish(Change(7, {"n7": node(7, "agents")}))
        await until(other.has(7))
        assert len(other.frames) == 2


async def test_a_revision_that_was_never_sent_is_not_believed(hub: Hub) -> None:
    async with agent(hub, 3) as tools:
        await until(tools.has(5))
        hub.applied(tools.connection, Applied(revision=9))
        assert hub.presence("n3").in_force is None


async def test_what_was_sent_counts_only_when_sending_succeeded(hub: Hub) -> None:
    with hub.connected("n3", hello(3)) as connection:

        async def broken(_frame: ControllerFrame) -> None:
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await connection.run(broken)
        assert connection.told is None
        assert connection.is_finished


async def test_closing_says_goodbye_to_everybody_and_admits_nobody(hub: Hub) -> None:
    async with agent(hub, 3) as tools, agent(hub, 1) as other:
        await until(tools.has(5))
        await hub.close()
        assert tools.bye.reason == other.bye.reason == "shutdown"
        assert tools.bye.retry
        with pytest.raises(RefusedError):
            hub.admit("n3")


async def test_closing_does_not_wait_for_ever(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.mesh.hub._FAREWELL", 0.05)
    async with agent(hub, 3) as tools:
        tools.gate.clear()
        async with asyncio.timeout(2):
            await hub.close()


async def test_loading_again_gives_connected_agents_a_snapshot(hub: Hub) -> None:
    async with agent(hub, 3) as tools, agent(hub, 1) as gone:
        await until(tools.has(5))
        hub.load(fleet([node(3, "tools"), node(2, "agents")], POLICY, revision=9))
        await until(tools.has(9))
        assert isinstance(tools.frames[-1], Snapshot)
        assert tools.netmap == netmap(hub, 3)
        await until(lambda: isinstance(gone.frames[-1:][0], Bye) if gone.frames else False)
        assert gone.bye.reason == "removed"


async def test_a_grant_ends_by_itself() -> None:
    now = 1_799_999_999.9
    started = time.monotonic()
    hub = Hub(lambda: now + time.monotonic() - started)
    policy = "grants: [{from: tag:agents, to: tag:tools, ip: icmp, expires: 2027-01-15T08:00:00Z}]"
    hub.load(fleet(NODES, policy, revision=5))
    async with agent(hub, 3) as tools:
        await until(tools.has(5))
        assert tools.netmap is not None
        assert tools.netmap.peers.keys() == {"n1", "n2"}
        await until(lambda: tools.netmap is not None and not tools.netmap.peers)
        assert isinstance(tools.frames[-1], DeltaFrame)
        assert tools.netmap == netmap(hub, 3)
    async with agent(hub, 3, 5) as again:
        await until(again.has(5))
        assert isinstance(again.frames[0], Snapshot)
    await hub.close()


def test_the_log_is_bounded_and_forgets_the_oldest() -> None:
    log = RevisionLog(5, max_size=100)
    hub = Hub(lambda: NOW)
    hub.load(fleet(NODES, POLICY, revision=5))
    state = hub._loaded()
    for revision in range(6, 200):
        log.add(revision, state.apply(Change(revision, {"n1": node(1, "agents", public_key=key(revision))}), NOW))
    assert log.since("n3", 5) is None
    assert log.since("n3", 150) is None
    newest = log.since("n3", 198)
    assert newest is not None
    assert newest.peers == {"n1"}
    assert len(log._changes) < 60


async def test_a_change_that_concerns_fifty_of_five_thousand_agents_is_cheap() -> None:
    """An agent's cost is its own: 5,000 are connected, 50 hear of it. The bound is generous; it is about the shape."""
    nodes = [node(n, f"t{n // 50}") for n in range(1, 5001)]
    grants = ", ".join(f"{{from: 'tag:t{t}', to: 'tag:t{t}', ip: 'tcp:443'}}" for t in range(101))
    hub = Hub(lambda: NOW)
    hub.load(fleet(nodes, f"grants: [{grants}]", revision=5))
    connections = []
    for n in range(1, 5001):
        manager = hub.connected(f"n{n}", hello(n))
        connections.append((manager, manager.__enter__()))
    for _, connection in connections:
        connection.told, connection._whole = 5, False
    started = time.perf_counter()
    for revision in range(6, 26):
        hub.publish(Change(revision, {f"n{10_000 + revision}": node(10_000 + revision, "t7")}))
    elapsed = (time.perf_counter() - started) / 20
    waiting = [connection for _, connection in connections if connection.is_waiting]
    assert len(waiting) == 50
    started = time.perf_counter()
    bodies = []
    for connection in waiting:
        frame = connection._take()
        assert isinstance(frame, DeltaFrame)
        bodies.append(frame.model_dump_json())
    sent = time.perf_counter() - started
    for manager, _ in connections:
        manager.__exit__(None, None, None)
    print(f"publish {elapsed * 1e3:.2f} ms a change; 50 deltas of 20 peers {sent * 1e3:.1f} ms")
    assert all(len(body) < 10_000 for body in bodies)
    assert elapsed < 0.05
    assert sent < 0.5


async def test_a_policy_that_cannot_be_read_is_no_end_of_the_hub(hub: Hub) -> None:
    async with agent(hub, 3) as tools:
        await until(tools.has(5))
        hub.publish(Change(6, {}, PolicyRecord(6, "grants: [")))
        await until(tools.has(6))
        assert tools.netmap is not None
        assert tools.netmap.peers == {}
