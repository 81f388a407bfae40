"""What our table does to sealed packets: those that a relay passes on, and those at a host's own place behind one.

The mesh link is a cable here, so this runs on any kernel; with tunnels it is in test_relays.py.
"""

import socket
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

import pytest

from controller.wire.netmap import Netmap
from controller.wire.relays import Relay, relay_prefix
from controller.wire.stun import COOKIE
from tests.kernel import packets
from tests.kernel.guarded import GUARDED, LINK, SENDER, Guarded
from tests.kernel.maps import MESH, Member, netmap, with_relays
from tests.lab import Host, eventually

pytestmark = pytest.mark.host_kernel
OTHER: Final = Member(3)
ALONE: Final = Member(4)  # no grant connects it with anybody
UNKNOWN: Final = Member(5)
RELAY: Final = Member(9)
PORT: Final = LINK.listen_port
MESSAGES: Final = [bytes((kind, 0, 0, 0)) + bytes(28) for kind in (1, 2, 3, 4)]
CHECKS: Final = [struct.pack(">HHI", kind, 0, COOKIE) + bytes(12) for kind in (0x0001, 0x0101)]
VERDICTS: Final = ("relayed", "denied/forward", "denied/relay")


def place(relay: Member, member: Member) -> str:
    found = Relay(relay.name, "here", relay.address6, relay_prefix(MESH, relay.address6)).place((member.address6,))
    assert found is not None
    return found


def relay_map() -> Netmap:
    """The map of the guarded host as a relay: it knows all but one, and passes on between two."""
    wanted = netmap(GUARDED, SENDER, OTHER, ALONE, rules=())
    return with_relays(wanted, GUARDED, between=[(SENDER, OTHER)])


def host_map() -> Netmap:
    """The map of the guarded host that may be found behind a relay."""
    return with_relays(netmap(GUARDED, SENDER, OTHER, rules=()), RELAY)


def finds(guarded: Guarded, relay: Member, members: Iterable[Member]) -> None:
    """Let the guarded host's kernel find these members' places at the sender, and forward."""
    guarded.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    guarded.host.machine.batch(f"route replace {relay_prefix(MESH, relay.address6)} dev {LINK.name}")
    for member in members:
        guarded.reaches_at_sender(place(relay, member))


def sealed(source: Member, destination: Member, payload: bytes, *, protocol: int = socket.IPPROTO_UDP) -> bytes:
    ends = place(GUARDED, source), place(GUARDED, destination)
    return packets.ip(*ends, protocol, packets.udp(*ends, PORT, PORT, payload))


def verdict(guarded: Guarded, packet: bytes) -> str:
    """Which counter a packet from the sender ends in."""
    before = guarded.counters()
    guarded.inject(packet)

    def ended() -> list[str]:
        now = guarded.counters()
        return [name for name in VERDICTS if now[name] != before[name]]

    (found,) = eventually(ended, what="the packet is counted")
    return found


@pytest.fixture
def relay(guarded: Guarded) -> Guarded:
    finds(guarded, GUARDED, (SENDER, OTHER, ALONE, UNKNOWN))
    guarded.apply(relay_map())
    return guarded


@pytest.mark.parametrize(
    "payload", MESSAGES + CHECKS, ids=["initiation", "response", "cookie", "data", "ask", "answer"]
)
def test_a_relay_passes_sealed_packets_and_checks_between_hosts_whom_a_grant_connects(
    relay: Guarded, payload: bytes
) -> None:
    with relay.tapped() as tap:
        assert verdict(relay, sealed(SENDER, OTHER, payload)) == "relayed"
        eventually(lambda: payload in tap.recv(65536), what="the packet leaves again")
    assert verdict(relay, sealed(OTHER, SENDER, payload)) == "relayed"


@pytest.mark.parametrize(
    ("source", "destination"),
    [(SENDER, ALONE), (ALONE, OTHER), (SENDER, UNKNOWN), (UNKNOWN, SENDER), (SENDER, SENDER)],
)
@pytest.mark.parametrize("payload", [MESSAGES[3], CHECKS[0]], ids=["sealed", "check"])
def test_a_relay_passes_nothing_between_any_others(
    relay: Guarded, source: Member, destination: Member, payload: bytes
) -> None:
    assert verdict(relay, sealed(source, destination, payload)) == "denied/forward"


@pytest.mark.parametrize(
    "payload",
    [
        b"\x00\x00\x00\x00" + bytes(28),
        b"\x05\x00\x00\x00" + bytes(28),
        b"\x04\x00\x00\x01" + bytes(28),
        struct.pack(">HHI", 0x0001, 0, COOKIE ^ 1) + bytes(12),
        struct.pack(">HHI", 0x0003, 0, COOKIE) + bytes(12),
        b"",
    ],
    ids=["type 0", "type 5", "reserved", "no cookie", "another method", "empty"],
)
def test_a_relay_passes_nothing_else_between_them(relay: Guarded, payload: bytes) -> None:
    assert verdict(relay, sealed(SENDER, OTHER, payload)) == "denied/forward"


@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, socket.IPPROTO_ICMPV6, 132])
def test_a_relay_passes_no_other_protocol_that_has_the_same_bytes(relay: Guarded, protocol: int) -> None:
    assert verdict(relay, sealed(SENDER, OTHER, MESSAGES[3], protocol=protocol)) == "denied/forward"


def test_a_relay_counts_by_source_and_destination(relay: Guarded) -> None:
    assert verdict(relay, sealed(SENDER, OTHER, MESSAGES[3])) == "relayed"
    listed = relay.host.run("nft", "list", "set", "inet", LINK.table, "relayed").stdout
    assert f"{place(GUARDED, SENDER)} . {place(GUARDED, OTHER)}" in listed
    assert place(GUARDED, ALONE) not in listed


def test_a_relay_passes_no_more_for_a_host_than_its_rate(relay: Guarded) -> None:
    """The kernel gives a host twice the rate in its first second, and this sends more than that, at once."""
    packet = sealed(SENDER, OTHER, MESSAGES[3] + bytes(1300))
    count = 2 * LINK.relay_rate * (1 << 20) // len(packet)
    relay.inject(packet, times=count + count // 4)
    eventually(lambda: relay.counters()["denied/relay"] > 0, what="packets over the rate are dropped")
    assert relay.counters()["relayed"] > 0


def test_a_host_takes_and_sends_nothing_but_udp_of_wireguards_port_at_its_place_behind_a_relay(
    guarded: Guarded,
) -> None:
    own, theirs = place(RELAY, GUARDED), place(RELAY, OTHER)
    finds(guarded, RELAY, (OTHER,))
    guarded.has(own)
    guarded.sender.machine.batch(f"address replace {theirs}/128 dev eth0 nodad", f"route replace {own} dev eth0")
    guarded.apply(host_map())
    with ExitStack() as closing:

        def bound(host: Host, address: str, port: int) -> socket.socket:
            opened = closing.enter_context(host.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            opened.settimeout(10)
            opened.bind((address, port))
            return opened

        here, there = bound(guarded.host, own, PORT), bound(guarded.sender, theirs, PORT)
        there.sendto(b"in", (own, PORT))
        assert here.recv(100) == b"in"
        here.sendto(b"out", (theirs, PORT))
        assert there.recv(100) == b"out"

        elsewhere = bound(guarded.host, own, PORT + 1)
        elsewhere.setblocking(False)
        there.sendto(b"in", (own, PORT + 1))
        there.sendto(b"after it", (own, PORT))
        assert here.recv(100) == b"after it"
        with pytest.raises(BlockingIOError):
            elsewhere.recv(100)
        with pytest.raises(PermissionError):
            elsewhere.sendto(b"out", (theirs, PORT))
