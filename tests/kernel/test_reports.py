"""What a host tells of the packets that it judged: counts by grant and direction."""

import socket

import pytest

from tests.kernel.guarded import SENDER, Guarded, family, pairs
from tests.kernel.maps import allow, netmap
from tests.kernel.nodes import pair
from tests.lab import eventually

pytestmark = pytest.mark.host_kernel


def send(guarded: Guarded, count: int, port: int) -> None:
    """UDP packets of both families from the sender to the guarded host."""
    for theirs, own in pairs(guarded):
        with guarded.sender.socket(family(own), socket.SOCK_DGRAM) as client:
            client.bind((theirs, 0))
            for _ in range(count):
                client.sendto(b"x", (own, port))


def test_counters_are_what_nft_says(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[allow("in", "udp", 443, grant="web: A/B")]))
    before = guarded.firewall.counters()
    assert before == guarded.counters()
    send(guarded, 3, 443)
    send(guarded, 2, 444)
    # Answers (port unreachable) are counted, too, so that only what the sender sent is exact.
    eventually(lambda: guarded.firewall.counters()["denied/in"] == 4)
    assert guarded.firewall.counters() == guarded.counters()
    assert guarded.firewall.counters()["grant/web._20_41_2f_42"] >= 6


def test_without_a_table_nothing_is_counted(guarded: Guarded) -> None:
    assert guarded.firewall.counters() == {}


def test_a_host_counts_by_the_names_that_people_gave_to_grants() -> None:
    with pair("userspace") as (left, right):
        rules = [allow(direction, "icmp", grant="policy:3 / pings") for direction in ("in", "out")]
        left.meet(right, rules=rules)
        assert left.ping(right.member.address)
        counted = left.call(left.reconciler.count)
        assert counted.accepted == {"policy:3 / pings": 2}
        with left.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, pytest.raises(PermissionError):
            client.sendto(b"x", (right.member.address, 9))
        after = left.call(left.reconciler.count).denied
        assert after["out"] - counted.denied["out"] == 1
        assert set(after) == {"in", "out", "forward", "spoofed", "leaked"}
