"""Hosts choose relays, are found behind them at once, leave them for direct paths, and come back."""

from collections.abc import Iterator

import pytest

from tests.kernel.finders import Finder, finders
from tests.kernel.parting import join, look_again, part, stream
from tests.lab import eventually


@pytest.fixture(scope="module")
def parted() -> Iterator[list[Finder]]:
    """Two hosts that cannot reach each other, and two relays."""
    with finders("public", "public", relays=2) as found:
        one, other = found[:2]
        part(one, other)
        one.meet(other)
        other.meet(one)
        eventually(lambda: one.reaches(other), 30, what="a ping by way of a relay")
        eventually(lambda: (one.kind(other), other.kind(one)) == ("relay", "relay"), 30, what="a path for each")
        yield found


def test_paths_by_way_of_a_relay_go_on_to_a_direct_one_without_losing_a_stream(parted: list[Finder]) -> None:
    one, other = parted[:2]
    with stream(one, other, 4) as arrived:
        join(one, other)
        look_again(one, other)
        eventually(lambda: one.works_directly(other) and other.works_directly(one), 20, what="a direct path for each")
    assert len(set(arrived)) >= 0.99 * 400
    eventually(lambda: one.sends_to(other) == other.sends_to(one) == "lan", 30, what="WireGuard to follow both")
    part(one, other)
    look_again(one, other)
    eventually(lambda: one.kind(other) == other.kind(one) == "relay", 20, what="the way back to a relay")
    eventually(lambda: one.reaches(other), 20, what="a ping by way of a relay again")


def test_paths_by_way_of_a_relay_that_is_lost_go_on_by_the_spare(parted: list[Finder]) -> None:
    one, other, *relays = parted
    used = one.prober.relay_of(one.endpoint(other))
    lost = next(relay for relay in relays if relay.member.name == used)
    lost.host.run("ip", "link", "set", "eth0", "down")
    eventually(lambda: one.prober.relay_of(one.endpoint(other)) not in {used, None}, 30, what="the spare")
    eventually(lambda: one.reaches(other), 30, what="a ping by way of the spare")
    assert len(one.prober.relayed) == 1
    lost.host.run("ip", "link", "set", "eth0", "up")
    eventually(lambda: len(one.prober.relayed) == 2, 60, what="the lost relay to be the spare of others")
