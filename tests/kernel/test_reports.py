"""What a host tells of the packets that it judged: counts by grant and direction, and the flows that it denied."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agentd.denied import DeniedLog, Flow
from agentd.kernel.denials import DenialLog
from agentd.model import KernelError
from controller.wire.denials import MOST_DENIALS
from tests.kernel import packets
from tests.kernel.guarded import SENDER, Guarded, family, pairs, raw
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


# --- denials ----------------------------------------------------------------------------------------------------------


@contextmanager
def denials(guarded: Guarded) -> Iterator[DeniedLog]:
    """What the guarded host hears of denied packets from here on."""
    kept = DeniedLog()

    async def listen() -> DenialLog:
        return DenialLog(lambda flow: kept.add(flow, 0))

    async def close() -> None:
        log.close()

    log = guarded.call(listen)
    try:
        yield kept
    finally:
        guarded.call(close)


def flows(kept: DeniedLog) -> dict[Flow | None, int]:
    return {found.flow: found.packets for found in kept.listed()}


def heard(kept: DeniedLog, flow: Flow, packets: int) -> None:
    eventually(lambda: flows(kept).get(flow) == packets, what=str(flow))


def test_a_denied_packet_is_heard_with_its_direction_and_port(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[allow("in", "udp", 443)]))
    with denials(guarded) as kept:
        send(guarded, 1, 443)
        send(guarded, 2, 444)
        for theirs, own in pairs(guarded):
            heard(kept, Flow("in", theirs, own, "udp", 444), 2)
            with guarded.host.socket(family(own), socket.SOCK_DGRAM) as client, pytest.raises(PermissionError):
                client.sendto(b"x", (theirs, 53))
            heard(kept, Flow("out", own, theirs, "udp", 53), 1)
        assert not [flow for flow in flows(kept) if flow and flow.direction == "in" and flow.port == 443]


def test_a_flood_from_one_address_is_heard_at_a_limited_rate(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[]))
    with denials(guarded) as kept:
        send(guarded, 2000, 444)
        eventually(lambda: guarded.firewall.counters()["denied/in"] >= 4000)
        theirs, own = pairs(guarded)[0]
        eventually(lambda: Flow("in", theirs, own, "udp", 444) in flows(kept))
        assert sum(flows(kept).values()) < 400


def test_a_flood_from_thousands_of_addresses_is_heard_in_bounded_memory(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[]))
    own = guarded.member.address
    with denials(guarded) as kept, raw(guarded.sender, 0, header=True) as outlet:
        for number in range(5000):
            source = f"100.64.{100 + number // 250}.{number % 250 + 1}"
            data = packets.udp(source, own, 4000, 444, b"x")
            outlet.sendto(packets.ip(source, own, socket.IPPROTO_UDP, data), (own, 0))
        eventually(lambda: guarded.firewall.counters()["denied/in"] >= 5000)
        eventually(lambda: None in flows(kept))
        assert len(flows(kept)) == MOST_DENIALS


def test_two_listeners_to_one_group_are_refused_in_a_sentence(guarded: Guarded) -> None:
    with (
        denials(guarded),
        pytest.raises(KernelError, match=r"NFLOG group 51820.*another program listens"),
        denials(guarded),
    ):
        pass
