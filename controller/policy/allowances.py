"""What entries of `ip` allow, in the one order and form that everything else uses. Pure."""

from collections.abc import Sequence

from controller.wire.netmap import PortRange, Protocol

from .document import Allowance
from .ports import Ports, merge

__all__ = ["services"]


def services(ip: Sequence[Allowance]) -> tuple[tuple[Protocol, Ports], ...]:
    """The ports of each protocol that the entries allow, none for ICMP, sorted and without overlaps."""
    found: dict[Protocol, list[PortRange]] = {}
    for entry in ip:
        protocols: tuple[Protocol, ...] = ("icmp", "tcp", "udp") if entry.protocol == "*" else (entry.protocol,)
        for protocol in protocols:
            found.setdefault(protocol, []).append(entry.ports)
    return tuple(sorted((protocol, () if protocol == "icmp" else merge(ports)) for protocol, ports in found.items()))
