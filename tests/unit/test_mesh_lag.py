"""For how long a host has been behind: since the oldest change that it does not say it has in force."""

from datetime import UTC, datetime

import pytest

from controller.mesh import Hub
from controller.mesh.elsewhere import Replica, Word
from controller.mesh.presence import Presence
from controller.records import Change
from controller.wire.stream import Applied

from .mesh_agents import agent, netmap, until
from .mesh_fleet import NOW, fleet, node

GRANT = "{{from: tag:agents, to: tag:tools, ip: [tcp:443]{}}}"
NODES = [node(1, "agents"), node(3, "tools"), node(7)]


class Mesh:
    """A hub whose clock goes on when it is told to."""

    def __init__(self, expires: str = "") -> None:
        self.time = NOW
        self.hub = Hub(lambda: self.time)
        self.hub.load(fleet(NODES, f"grants: [{GRANT.format(expires)}]", revision=5))

    def after(self, seconds: float) -> None:
        self.time += seconds

    def change(self, revision: int) -> None:
        """One more caller, which concerns n3 and not n7."""
        self.hub.publish(Change(revision, {f"n{revision + 10}": node(revision + 10, "agents")}))

    def lag(self, node_id: str = "n3") -> float | None:
        return self.hub.presence(node_id).lag(self.time)


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


async def test_it_counts_from_the_oldest_change_that_is_not_in_force(mesh: Mesh) -> None:
    async with agent(mesh.hub, 3) as tools:
        await until(tools.has(5))
        mesh.hub.applied(tools.connection, Applied(revision=5))
        assert mesh.lag() is None
        for revision in (6, 7):
            mesh.change(revision)
            await until(tools.has(revision))
            mesh.after(10)
        assert mesh.lag() == 20
        mesh.hub.applied(tools.connection, Applied(revision=6))
        assert mesh.lag() == 10
        mesh.hub.applied(tools.connection, Applied(revision=7, error="nft refused"))
        assert mesh.lag() == 10
        mesh.hub.applied(tools.connection, Applied(revision=7))
        assert mesh.lag() is None


async def test_a_change_that_does_not_concern_a_host_is_no_lag(mesh: Mesh) -> None:
    async with agent(mesh.hub, 7) as other:
        await until(other.has(5))
        mesh.hub.applied(other.connection, Applied(revision=5))
        mesh.change(6)
        mesh.after(10)
        assert mesh.lag("n7") is None


async def test_what_could_not_be_sent_yet_counts_from_when_it_was_decided(mesh: Mesh) -> None:
    async with agent(mesh.hub, 3) as tools:
        await until(tools.has(5))
        mesh.hub.applied(tools.connection, Applied(revision=5))
        tools.gate.clear()
        for revision in (6, 7, 8):
            mesh.change(revision)
            mesh.after(10)
        assert mesh.lag() == 30
        tools.gate.set()
        await until(tools.has(8))
        assert mesh.lag() == 30


async def test_a_host_that_reads_and_never_acknowledges_costs_bounded_memory_and_is_not_shown_as_less_late(
    mesh: Mesh,
) -> None:
    async with agent(mesh.hub, 3) as tools:
        await until(tools.has(5))
        for revision in range(6, 300):
            mesh.after(1)
            mesh.change(revision)
            await until(tools.has(revision))
        assert mesh.lag() == 294
        mesh.hub.applied(tools.connection, Applied(revision=200))
        assert (mesh.lag() or 0) >= 99
        mesh.hub.applied(tools.connection, Applied(revision=299))
        assert mesh.lag() is None


@pytest.mark.parametrize("is_connected", [True, False])
async def test_it_goes_on_when_the_host_comes_back(mesh: Mesh, is_connected: bool) -> None:
    """Whether the change came before its stream ended or afterwards."""
    async with agent(mesh.hub, 3) as tools:
        await until(tools.has(5))
        mesh.hub.applied(tools.connection, Applied(revision=5))
        held = netmap(mesh.hub, 3)
        if is_connected:
            mesh.change(6)
    if not is_connected:
        mesh.change(6)
    mesh.after(60)
    assert mesh.lag() is None, "it is away"
    async with agent(mesh.hub, 3, 5, held=held) as tools:
        assert mesh.lag() == 60
        await until(tools.has(6))
        mesh.hub.applied(tools.connection, Applied(revision=6))
        assert mesh.lag() is None


async def test_it_goes_on_when_a_second_stream_replaces_the_first(mesh: Mesh) -> None:
    async with agent(mesh.hub, 3) as first:
        await until(first.has(5))
        mesh.after(60)
        async with agent(mesh.hub, 3):
            assert mesh.lag() == 60


async def test_a_grant_that_ended_by_its_time_and_could_not_be_taken_away_yet_counts_from_its_end() -> None:
    mesh = Mesh(", expires: 2027-01-15T08:01:40Z")
    async with agent(mesh.hub, 3) as tools:
        await until(tools.has(5))
        mesh.hub.applied(tools.connection, Applied(revision=5))
        tools.gate.clear()
        mesh.after(100)
        mesh.hub.clock_was_set()
        mesh.after(7)
        assert mesh.lag() == 7


async def test_another_controllers_word_says_for_how_long_and_a_change_that_it_has_not_heard_of_counts_from_now(
    mesh: Mesh,
) -> None:
    opened = datetime.fromtimestamp(NOW, UTC)

    def says(as_of: int, presence: Presence) -> None:
        mesh.hub.heard_of([Replica("other", "https://192.0.2.1:8443", as_of)], {"n3": Word("other", opened, presence)})

    mesh.change(6)
    says(6, Presence(online=True, behind=True, behind_since=NOW - 40))
    assert mesh.lag() == 40
    says(5, Presence(online=True, in_force=5))
    assert mesh.lag() == 0
    says(6, Presence(online=True, in_force=6))
    assert mesh.lag() is None
    async with agent(mesh.hub, 3):
        mesh.after(1)
        assert mesh.lag() == 1, "the other had told it of the change"
