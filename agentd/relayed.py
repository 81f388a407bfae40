"""What this host passed on as a relay, by pair of hosts: read from the kernel when the controller asks."""

import asyncio
import errno
import ipaddress
from collections.abc import Mapping
from heapq import nlargest
from typing import Final

from controller.wire.netmap import Netmap, NodeId
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
    places = ((own.place(peer.addresses), peer.id) for peer in netmap.peers.values())
    nodes = {ipaddress.IPv6Address(place).packed: node for place, node in places if place is not None}
    # Up to 65,536 pairs: not on the event loop.
    pairs, count = await asyncio.to_thread(_pairs, table, nodes)
    return Relayed(pairs=pairs, count=count, rate=rate, problem=relay_problem(netmap))


def _pairs(table: str, nodes: Mapping[bytes, NodeId]) -> tuple[tuple[PairCount, ...], int]:
    """Those with the most bytes, and how many there are. `nodes`: by their packed addresses at this relay."""
    known = [
        (element, nodes[source], nodes[destination])
        for element in _counted(table)
        if (source := element.key[:_ADDRESS]) in nodes
        and (destination := element.key[_ADDRESS : 2 * _ADDRESS]) in nodes  # else: of a host that is a peer no more
    ]
    most = nlargest(MOST_PAIRS, known, key=lambda one: one[0].bytes)
    return tuple(
        PairCount(source=source, destination=destination, packets=element.packets, bytes=element.bytes)
        for element, source, destination in most
    ), len(known)


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
