"""The connection of an agent to a real controller: maps come, answers go, certificates are renewed, removal denies."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agentd import control as control_module
from agentd.config import Config
from agentd.denied import Flow
from agentd.errors import StateError
from agentd.join import HostFacts, join
from agentd.netmap import load
from agentd.session import Phase
from agentd.state import StateDir
from controller.server import running
from controller.settings import Listen, Settings
from controller.wire.rest import EnrolmentKeyCreated

from .agents import allow_all, connected, eventually_in_force, joined, node, remove, set_state, until
from .support import Client, MovableClock


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are a matter of the state machine's own tests."""
    monkeypatch.setattr("agentd.telling._GATHER_DENIED", 0.01)
    monkeypatch.setattr("agentd.telling._DENIED_EVERY", 0.01)
    monkeypatch.setattr("agentd.session._FIRST_PAUSE", 0.05)
    monkeypatch.setattr("agentd.session._LONGEST_PAUSE", 0.2)


@pytest.fixture
async def state(admin: Client, tmp_path: Path) -> StateDir:
    return await joined(admin, tmp_path, "db-1")


async def test_a_map_is_applied_saved_and_confirmed(admin: Client, state: StateDir) -> None:
    async with connected(state) as agent:
        await until(lambda: agent.standing is Phase.STREAMING and agent.kernel.applied)
        revision = agent.kernel.applied[-1].revision
        await eventually_in_force(admin, "db-1", revision)
    saved, _ = load(state)
    assert saved is not None
    assert saved.netmap == agent.kernel.applied[-1]


async def test_peers_come_and_go_as_deltas(admin: Client, state: StateDir, tmp_path: Path) -> None:
    await allow_all(admin)
    async with connected(state) as agent:
        await until(lambda: agent.kernel.applied)
        await joined(admin, tmp_path, "db-2")
        await until(lambda: agent.peers == {"db-2"})
        await remove(admin, "db-2")
        await until(lambda: agent.peers == set())


async def test_a_map_that_the_kernel_refuses_is_reported_and_tried_again(admin: Client, state: StateDir) -> None:
    async with connected(state) as agent:
        agent.kernel.refusal = "the kernel said no: buy a new one"
        await until(lambda: agent.applier.outcome and agent.applier.outcome.error)
        async with asyncio.timeout(20):
            while (await node(admin, "db-1"))["error"] != agent.kernel.refusal:
                await asyncio.sleep(0.02)
        assert agent.applier.in_force is None
        assert load(state) == (None, None)
        agent.kernel.refusal = None
        await until(lambda: agent.kernel.applied)
        async with asyncio.timeout(20):
            while (await node(admin, "db-1"))["error"] is not None:
                await asyncio.sleep(0.02)


async def test_a_map_that_cannot_be_saved_is_in_force_all_the_same(
    admin: Client, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StateError("cannot write netmap.json: the disk is full: free some space and try again")

    monkeypatch.setattr("agentd.apply.save", full)
    async with connected(state) as agent:
        await until(lambda: agent.kernel.applied)
        await eventually_in_force(admin, "db-1", agent.kernel.applied[-1].revision)
        assert "the disk is full" in str(agent.applier.save_error)


async def test_a_controller_that_restarts_is_resumed(settings: Settings, clock: MovableClock, tmp_path: Path) -> None:
    async with running(settings, clock) as first, Client(first, token=first.first_token) as admin:
        state = await joined(admin, tmp_path, "db-1")
        port, token = first.port, first.first_token
        async with connected(state) as agent:
            await until(lambda: agent.kernel.applied)
            # What was acknowledged is on disk; what was applied a moment ago may not be yet.
            await eventually_in_force(admin, "db-1", agent.kernel.applied[-1].revision)
        node_file = json.loads((state.path / "node.json").read_text())
    fixed = Settings(state_dir=settings.state_dir, listen=Listen("127.0.0.1", port))
    async with connected(state) as agent:
        await until(lambda: agent.standing is Phase.WAITING and agent.control.standing.error)
        assert "cannot be reached" in str(agent.control.standing.error)
        await until(lambda: len(agent.kernel.applied) == 1)
        async with running(fixed, clock) as second, Client(second, token=token) as admin:
            await until(lambda: agent.standing is Phase.STREAMING)
            await eventually_in_force(admin, "db-1", agent.kernel.applied[-1].revision)
        assert node_file["node_id"] == agent.kernel.applied[-1].node.id


async def test_what_changes_on_the_host_is_told(admin: Client, state: StateDir) -> None:
    async with connected(state) as agent:
        await until(lambda: agent.standing is Phase.STREAMING)
        agent.endpoints[:] = ["192.0.2.8:51820"]
        agent.telling.changed()
        async with asyncio.timeout(20):
            while (await node(admin, "db-1"))["endpoints"] != ["192.0.2.8:51820"]:
                await asyncio.sleep(0.02)


async def test_a_removed_node_empties_its_map_and_stays_away(admin: Client, state: StateDir, tmp_path: Path) -> None:
    await allow_all(admin)
    await joined(admin, tmp_path, "db-2")
    async with connected(state) as agent:
        await until(lambda: agent.peers == {"db-2"})
        await remove(admin, "db-1")
        await until(lambda: agent.standing is Phase.PARKED and agent.peers == set())
        assert agent.kernel.applied[-1].rules == {}
        assert "join again" in str(agent.control.standing.error)
    saved, _ = load(state)
    assert saved is not None
    assert (saved.netmap.peers, saved.resume) == ({}, False)


async def test_a_disabled_node_empties_its_map_and_comes_back_when_it_is_enabled(
    admin: Client, state: StateDir, tmp_path: Path
) -> None:
    await allow_all(admin)
    await joined(admin, tmp_path, "db-2")
    async with connected(state) as agent:
        await until(lambda: agent.peers == {"db-2"})
        await set_state(admin, "db-1", "disabled")
        await until(lambda: agent.peers == set())
        await set_state(admin, "db-1", "active")
        await until(lambda: agent.peers == {"db-2"})


async def test_a_host_that_waits_for_approval_is_connected_and_alone(admin: Client, tmp_path: Path) -> None:
    await allow_all(admin)
    answer = await admin.post("/enrolment-keys", json={"approved": False})
    state = StateDir(tmp_path / "db-3")
    text = EnrolmentKeyCreated.model_validate_json(answer.content).join
    facts = HostFacts(addresses=(), networks=())
    await asyncio.to_thread(join, state, Config(name="db-3"), text, facts, say=lambda _: None)
    await joined(admin, tmp_path, "db-2")
    async with connected(state) as agent:
        await until(lambda: agent.standing is Phase.STREAMING and agent.kernel.applied)
        assert agent.peers == set()
        await set_state(admin, "db-3", "active")
        await until(lambda: agent.peers == {"db-2"})


async def test_a_clone_takes_over_and_the_older_waits(state: StateDir) -> None:
    async with connected(state) as older:
        await until(lambda: older.standing is Phase.STREAMING)
        async with connected(state) as newer:
            await until(lambda: "replaced" in str(older.control.standing.error))
            await until(lambda: newer.kernel.applied)


async def test_a_certificate_that_expired_while_away_is_renewed(settings: Settings, tmp_path: Path) -> None:
    clock = MovableClock()
    clock.advance(days=-4)
    async with running(settings, clock) as controller, Client(controller, token=controller.first_token) as admin:
        state = await joined(admin, tmp_path, "db-1")
        old = state.certificate()
        assert old is not None
        assert old.not_valid_after_utc < datetime.now(UTC)
        clock.offset = timedelta()
        async with connected(state) as agent:
            await until(lambda: agent.standing is Phase.STREAMING)
        new = state.certificate()
        assert new is not None
        assert new.not_valid_after_utc > datetime.now(UTC) + timedelta(days=2)


async def test_a_certificate_that_the_controller_refuses_is_renewed_whatever_our_clock_says(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = MovableClock()
    clock.advance(days=-4)
    monkeypatch.setattr(control_module, "due", lambda _: datetime.now(UTC) + timedelta(days=1))
    async with running(settings, clock) as controller, Client(controller, token=controller.first_token) as admin:
        state = await joined(admin, tmp_path, "db-1")
        clock.offset = timedelta()
        async with connected(state) as agent:
            await until(lambda: agent.standing is Phase.STREAMING)


async def test_a_certificate_is_renewed_in_time_without_a_break(
    admin: Client, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = state.certificate()
    assert first is not None
    monkeypatch.setattr(
        control_module,
        "due",
        lambda found: datetime.now(UTC) + timedelta(days=0 if found == first else 1),
    )
    async with connected(state) as agent:
        await until(lambda: agent.standing is Phase.STREAMING)
        since = agent.control.standing.connected
        await until(lambda: state.certificate() != first)
        assert agent.control.standing.connected == since


async def test_a_node_that_was_removed_while_its_certificate_expired_denies(settings: Settings, tmp_path: Path) -> None:
    clock = MovableClock()
    clock.advance(days=-4)
    async with running(settings, clock) as controller, Client(controller, token=controller.first_token) as admin:
        state = await joined(admin, tmp_path, "db-1")
        await remove(admin, "db-1")
        clock.offset = timedelta()
        async with connected(state) as agent:
            await until(lambda: agent.standing is Phase.PARKED)


# --- what was denied --------------------------------------------------------------------------------------------------


async def test_what_is_denied_is_told_also_when_it_goes_on(admin: Client, tmp_path: Path) -> None:
    state = await joined(admin, tmp_path, "host")
    flow = Flow("in", "100.64.0.9", "100.64.0.1", "tcp", 22)

    async def told() -> list[tuple[int, str]]:
        items = (await admin.get("/denials")).json()["items"]
        return [(item["packets"], item["minute"]) for item in items]

    async def until_told(*wanted: tuple[int, str]) -> None:
        async with asyncio.timeout(20):
            while await told() != list(wanted):
                await asyncio.sleep(0.02)

    async with connected(state) as agent:
        await until(lambda: agent.standing is Phase.STREAMING)
        for moment, wanted in ((0, [(1, "00:00")]), (1, [(2, "00:00")]), (60, [(1, "00:01"), (2, "00:00")])):
            agent.denied.add(flow, moment)
            agent.telling.denied_more()
            await until_told(*((packets, f"1970-01-01T{minute}:00Z") for packets, minute in wanted))


# --- what somebody changed on the host --------------------------------------------------------------------------------


async def test_what_somebody_changed_is_one_audit_entry_by_the_host(admin: Client, tmp_path: Path) -> None:
    state = await joined(admin, tmp_path, "host")
    node = state.node()
    assert node is not None
    entries: list[dict[str, object]] = []
    async with connected(state) as agent:
        agent.telling.drifted("x" * 5000)
        agent.telling.drifted("write the table")
        async with asyncio.timeout(20):
            while not entries:
                await asyncio.sleep(0.02)
                entries = (await admin.get("/audit", params={"action": "host:node:drift"})).json()["items"]
        assert agent.standing is Phase.STREAMING
    assert [(entry["actor"], entry["new"]) for entry in entries] == [
        (f"node:{node.node_id}", {"put_back": "write the table"})
    ]


async def test_a_question_is_answered_on_the_stream(admin: Client, tmp_path: Path) -> None:
    async with connected(await joined(admin, tmp_path, "host")) as agent:
        await until(lambda: agent.standing is Phase.STREAMING and agent.kernel.applied)
        for _ in range(2):
            found = (await admin.get("/policy/counters")).json()
            assert found["grants"] == [{"grant": "grant", "accepted": 7, "hosts": {"host": 7}}]
