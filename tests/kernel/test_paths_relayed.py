"""Hosts choose relays, are found behind them at once, leave them for direct paths, and come back."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.kernel.finders import Finder, finders
from tests.kernel.parting import join, look_again, part, places, stream, transfer
from tests.lab import eventually


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Finder]]:
    """Two hosts of the internet, and two relays."""
    with finders("public", "public", relays=2) as found:
        one, other = found[:2]
        one.meet(other)
        other.meet(one)
        yield found


@pytest.fixture
def parted(hosts: list[Finder]) -> list[Finder]:
    """The two cannot reach each other but by way of a relay, and do."""
    one, other = hosts[:2]
    part(one, other)
    look_again(one, other)
    eventually(lambda: one.kind(other) == other.kind(one) == "relay", 30, what="a path for each")
    eventually(lambda: one.reaches(other), 30, what="a ping by way of a relay")
    return hosts


@pytest.fixture
def joined(hosts: list[Finder]) -> list[Finder]:
    """The two reach each other directly, and do."""
    one, other = hosts[:2]
    join(one, other)
    look_again(one, other)
    eventually(lambda: one.works_directly(other) and other.works_directly(one), 30, what="a path for each")
    eventually(lambda: one.reaches(other), 30, what="a ping")
    return hosts


def relay_between(one: Finder, other: Finder, relays: list[Finder]) -> Finder:
    """The relay by way of which the one reaches the other."""
    used = one.prober.relay_of(one.endpoint(other))
    return next(relay for relay in relays if relay.member.name == used)


def test_paths_by_way_of_a_relay_go_on_to_a_direct_one_without_losing_a_stream(parted: list[Finder]) -> None:
    one, other = parted[:2]
    with transfer(one, other) as came, stream(one, other, 4) as arrived:
        eventually(lambda: came() > 100_000, 20, what="some of it by way of a relay")
        join(one, other)
        look_again(one, other)
        eventually(lambda: one.works_directly(other) and other.works_directly(one), 20, what="a direct path for each")
        before = came()
        eventually(lambda: came() > before + 100_000, 20, what="some of it directly")
    assert len(set(arrived)) >= 0.99 * 400
    eventually(lambda: one.sends_to(other) == other.sends_to(one) == "lan", 30, what="WireGuard to follow both")


def test_paths_that_die_without_a_sign_are_left_for_a_relay_within_seconds_of_traffic(joined: list[Finder]) -> None:
    one, other = joined[:2]
    for finder in (one, other):
        finder.member = replace(finder.member, keepalive=None)  # as without a NAT: 100 s between two questions
    one.meet(other)
    other.meet(one)
    with transfer(one, other) as came:
        eventually(lambda: came() > 100_000, 20, what="some of it directly")
        part(one, other)
        eventually(lambda: one.kind(other) == other.kind(one) == "relay", 20, what="the way back to a relay")
        before = came()
        eventually(lambda: came() > before + 100_000, 20, what="the rest of it by way of a relay")


def test_paths_by_way_of_a_relay_go_on_while_its_agentd_starts_anew(parted: list[Finder]) -> None:
    one, other, *relays = parted
    with places(one, other) as seen, stream(one, other, 2) as arrived:
        relay_between(one, other, relays).restart()
    assert len(set(arrived)) >= 0.99 * 200
    assert len(seen) <= 2


def test_paths_by_way_of_a_relay_that_boots_anew_go_on_without_going_to_and_fro(parted: list[Finder]) -> None:
    """It answers questions again before anybody misses it, but has forgotten all keys: traffic alone tells."""
    one, other, *relays = parted
    with places(one, other) as seen, transfer(one, other) as came:
        eventually(lambda: came() > 100_000, 20, what="some of it by way of the relay")
        relay_between(one, other, relays).restart(reboot=True)
        before = came()
        eventually(lambda: came() > before + 500_000, 30, what="the rest of it")
    assert len(seen) <= 3


def test_paths_by_way_of_a_relay_that_is_lost_go_on_by_the_spare(parted: list[Finder]) -> None:
    one, other, *relays = parted
    lost = relay_between(one, other, relays)
    used = lost.member.name
    lost.host.run("ip", "link", "set", "eth0", "down")
    eventually(lambda: one.prober.relay_of(one.endpoint(other)) not in {used, None}, 30, what="the spare")
    eventually(lambda: one.reaches(other), 30, what="a ping by way of the spare")
    eventually(lambda: len(one.prober.relayed) == 1, 30, what="the lost relay to be none of this host's places")
    lost.host.run("ip", "link", "set", "eth0", "up")
    eventually(lambda: len(one.prober.relayed) == 2, 60, what="the lost relay to be the spare of others")
