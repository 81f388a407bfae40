"""Many single packets through a guarded host at once, and which of them its kernel let pass.

Every packet carries a number of its own, which is found again in what raw sockets behind the input hook receive. What
may not leave is refused to its sender by the output hook.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from tests.kernel import packets
from tests.kernel.guarded import Guarded, raw
from tests.kernel.maps import Member, allow
from tests.lab import eventually

__all__ = ["BEACON", "BEACON_RULE", "ODD", "Probe", "verdicts"]

# Protocols that no rule can name, by the name that the reference model may be asked with.
ODD: Final = {
    "ipip": 4,
    "ipv6": 41,
    "dccp": 33,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "sctp": 132,
    "udplite": 136,
    "hopopt": 0,  # IPv6 alone: a UDP datagram behind a hop-by-hop header
}
BEACON: Final = Member(200)  # its packets always pass: when they have arrived, all before them have been judged
BEACON_RULE: Final = allow("in", "udp", 7, peers=["beacon"], grant="beacon")
_FIRST_PORT: Final = 1024  # source ports are the packets' numbers from here on, so that every packet is a flow
_SYN: Final = 0x02
_MORE_FRAGMENTS: Final = 0x2000
_ICMP: Final = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)


@dataclass(frozen=True)
class Probe:
    """One packet between the guarded host and `peer`, an address; `fragmented` for UDP over IPv4 alone.

    `local`: the guarded host's address, if not its own; of the same family.
    """

    inward: bool
    peer: str
    protocol: str
    port: int | None = None
    fragmented: bool = False
    local: str | None = None

    @property
    def six(self) -> bool:
        return ":" in self.peer

    def number(self) -> int:
        """The IP protocol of the packet, behind all extension headers for `hopopt`."""
        if self.protocol == "icmp":
            return _ICMP[self.six]
        known = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "hopopt": socket.IPPROTO_UDP}
        return known.get(self.protocol, ODD.get(self.protocol, -1))


def verdicts(guarded: Guarded, probes: Sequence[Probe]) -> list[bool]:
    """Send them all; True for each that passed. The map in force must have BEACON_RULE and the set `beacon`."""
    with ExitStack() as stack:
        lines = _Lines(guarded, stack, {(probe.six, probe.number()) for probe in probes})
        left = {number for number, probe in enumerate(probes) if not probe.inward and lines.send(number, probe)}
        for number, probe in enumerate(probes):
            if probe.inward:
                lines.send(number, probe)
        arrived = lines.arrivals(len(probes))
    return [(number in arrived) if probe.inward else (number in left) for number, probe in enumerate(probes)]


class _Lines:
    """Open sockets of the two hosts, one for each protocol in use."""

    def __init__(self, guarded: Guarded, stack: ExitStack, kinds: set[tuple[bool, int]]) -> None:
        self._own = {False: guarded.member.address, True: guarded.member.address6}
        self._outlets: dict[tuple[bool, bool], socket.socket] = {}
        self._inlets: list[tuple[bool, int, socket.socket]] = []
        for six in (False, True):
            for inward, host in ((True, guarded.sender), (False, guarded.host)):
                outlet = stack.enter_context(raw(host, 0, six=six, header=True))
                self._outlets[inward, six] = outlet
        for six, protocol in kinds | {(False, socket.IPPROTO_UDP), (True, socket.IPPROTO_UDP)}:
            inlet = stack.enter_context(raw(guarded.host, protocol, six=six))
            inlet.setblocking(False)
            inlet.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            self._inlets.append((six, protocol, inlet))

    def send(self, number: int, probe: Probe) -> bool:
        """Put the packet on its way; False when the host refused to let it out."""
        own = probe.local or self._own[probe.six]
        source, destination = (probe.peer, own) if probe.inward else (own, probe.peer)
        try:
            for packet in _packets(number, probe, source, destination):
                self._outlets[probe.inward, probe.six].sendto(packet, (destination, 0))
        except PermissionError:
            return False
        return True

    def arrivals(self, count: int) -> set[int]:
        """The numbers of the packets that passed the guarded host's input hook."""
        beacons = {
            count + six: Probe(True, BEACON.address6 if six else BEACON.address, "udp", 7) for six in (False, True)
        }
        for number, beacon in beacons.items():
            self.send(number, beacon)
        found: set[int] = set()

        def beacons_are_in() -> bool:
            for six, protocol, inlet in self._inlets:
                found.update(_numbers(inlet, protocol, six=six))
            return beacons.keys() <= found

        eventually(beacons_are_in)
        beacons_are_in()  # what stood behind a beacon in another socket
        return found


def _packets(number: int, probe: Probe, source: str, destination: str) -> Iterator[bytes]:
    sport, port = _FIRST_PORT + number, probe.port or 0
    ident = number + 1  # the kernel writes one of its own where a raw packet has 0, another for each fragment
    protocol, token = probe.number(), struct.pack(">I", number)
    if probe.protocol == "tcp":
        data = packets.tcp_syn(source, destination, sport, port, number)
    elif probe.protocol == "icmp":
        data = packets.echo(source, destination, number)
    elif probe.fragmented:
        whole = packets.udp(source, destination, sport, port, token * 8)
        # RFC 791 section 3.2: offsets are in units of 8 bytes. The second fragment has no ports.
        yield packets.ip(source, destination, protocol, whole[:24], fragment=_MORE_FRAGMENTS, ident=ident)
        yield packets.ip(source, destination, protocol, whole[24:], fragment=24 // 8, ident=ident)
        return
    else:
        # Also for the odd ones: where TCP and UDP have their ports, they have the bytes of a flow that may be allowed.
        data = packets.udp(source, destination, sport, port, token)
    if probe.protocol == "hopopt":
        protocol, data = 0, packets.extension(protocol) + data
    yield packets.ip(source, destination, protocol, data, ident=ident)


def _numbers(inlet: socket.socket, protocol: int, *, six: bool) -> Iterator[int]:
    """The numbers of the packets that are queued."""
    while True:
        try:
            data = inlet.recv(2048)
        except BlockingIOError:
            return
        data = data if six else data[20:]
        if protocol in _ICMP and data[0] not in {packets.ICMP_ECHO, packets.ICMPV6_ECHO}:
            continue
        if protocol == socket.IPPROTO_TCP and data[13] != _SYN:
            continue  # an answer to a packet that left
        at = 4 if protocol in {socket.IPPROTO_TCP, *_ICMP} else 8
        yield int.from_bytes(data[at : at + 4], "big")
