"""What this host passed on as a relay, by pair of hosts: read from the kernel when the controller asks."""

import asyncio
import errno
import ipaddress
from typing import Final

from controller.wire.netmap import Netmap
from controller.wire.relay_use import MOST_PAIRS, PairCount, Relayed
from controller.wire.relays import relays_of

from .facts import relay_problem
from .kernel.elements import CountedElement, counted_elements
from .kernel.forwarding import PAIRS
from .kernel.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from .model import KernelError

__all__ = ["relayed"]

_ADDRESS: Final = 16  # bytes


async def relayed(netmap: Netmap | None, table: str, rate: int) -> Relayed:
    """By the map in force; `table` is ours, `rate` megabytes a second for each host. Raises KernelError."""
    own = relays_of(netmap).own if netmap is not None else None
    if netmap is None or own is None:
        return Relayed(problem="this host relays for nobody: no region of `relays:` in the policy matches it")
    # Up to 65,536 pairs: not on the event loop.
    found = await asyncio.to_thread(_counted, table)
    nodes = {place: peer.id for peer in netmap.peers.values() if (place := own.place(peer.addresses)) is not None}
    pairs = []
    for element in sorted(found, key=lambda one: -one.bytes):
        source, destination = (nodes.get(str(ipaddress.IPv6Address(half))) for half in _halves(element.key))
        if source is not None and destination is not None:  # else: of a host that is a peer no more
            pairs.append(
                PairCount(source=source, destination=destination, packets=element.packets, bytes=element.bytes)
            )
    return Relayed(pairs=tuple(pairs[:MOST_PAIRS]), count=len(pairs), rate=rate, problem=relay_problem(netmap))


def _halves(key: bytes) -> tuple[bytes, bytes]:
    return key[:_ADDRESS], key[_ADDRESS : 2 * _ADDRESS]


def _counted(table: str) -> list[CountedElement]:
    try:
        netlink = NetlinkSocket(NETLINK_NETFILTER)
        try:
            return list(counted_elements(netlink, "inet", table, PAIRS))
        finally:
            netlink.close()
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return []  # the table that makes this host a relay is not written yet
        raise KernelError(f"the kernel did not tell what was relayed: {error}") from error
    except OSError as error:
        raise KernelError(f"the kernel could not be asked what was relayed: {error.strerror}") from error
