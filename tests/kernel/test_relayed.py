"""What a relay's kernel counted by pair of hosts is read back and named."""

from collections.abc import Iterator

import pytest

from agentd.relayed import relayed
from controller.wire.relay_use import MOST_PAIRS, PairCount
from controller.wire.relays import relays_of
from tests.kernel.maps import Member, netmap, with_relays
from tests.kernel.nodes import OnHost
from tests.lab import Lab

pytestmark = pytest.mark.host_kernel

RELAY, ONE, OTHER = Member(1), Member(2), Member(3)
MAP = with_relays(netmap(RELAY, ONE, OTHER, rules=()), RELAY, between=[(ONE, OTHER)])
SET = """
add table inet wardmesh
add set inet wardmesh relayed { type ipv6_addr . ipv6_addr; flags dynamic,timeout; timeout 1h; counter; }
"""


def place(member: Member) -> str:
    own = relays_of(MAP).own
    assert own is not None
    found = own.place((member.address6,))
    assert found is not None
    return found


@pytest.fixture
def host() -> Iterator[OnHost]:
    with Lab() as lab:
        found = OnHost(lab.host("relay"))
        found.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        yield found
        found.end()


def add(host: OnHost, *pairs: tuple[str, str, int, int]) -> None:
    elements = ", ".join(
        f"{one} . {other} counter packets {packets} bytes {size}" for one, other, packets, size in pairs
    )
    host.host.nft(f"{SET}add element inet wardmesh relayed {{ {elements} }}\n")


def test_pairs_are_those_of_the_set_by_node_with_the_most_bytes_first(host: OnHost) -> None:
    add(
        host,
        (place(ONE), place(OTHER), 3, 300),
        (place(OTHER), place(ONE), 4, 70_000_000_000),
        ("fd00::1", place(ONE), 9, 9),
    )
    found = host.call(lambda: relayed(MAP, "wardmesh", 100))
    assert found.pairs == (
        PairCount(source="n3", destination="n2", packets=4, bytes=70_000_000_000),
        PairCount(source="n2", destination="n3", packets=3, bytes=300),
    )
    assert (found.count, found.rate, found.problem) == (2, 100, None)


def test_of_many_pairs_a_bounded_number_is_told_with_how_many_there_are(host: OnHost) -> None:
    others = [Member(number) for number in range(10, 40)]
    many = with_relays(netmap(RELAY, *others, rules=()), RELAY)
    places = [place(member) for member in others]
    add(host, *((one, other, 1, 1) for one in places for other in places if one != other))
    found = host.call(lambda: relayed(many, "wardmesh", 0))
    assert (len(found.pairs), found.count) == (MOST_PAIRS, 30 * 29)


def test_a_relay_without_its_table_passed_on_nothing(host: OnHost) -> None:
    assert host.call(lambda: relayed(MAP, "wardmesh", 100)).pairs == ()


def test_a_host_that_is_no_relay_says_so(host: OnHost) -> None:
    found = host.call(lambda: relayed(netmap(ONE, OTHER), "wardmesh", 100))
    assert "relays for nobody" in str(found.problem)


def test_a_relay_whose_kernel_does_not_forward_says_so(host: OnHost) -> None:
    host.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
    assert "forwards no IPv6" in str(host.call(lambda: relayed(MAP, "wardmesh", 100)).problem)
