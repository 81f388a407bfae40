"""What relays mean for the kernel of a host: addresses, allowed IPs and routes. Pure.

A host's own place behind each relay is an address of its link; the relay, as a peer, is allowed its whole prefix; and a
peer that is reached through it has the peer's place there as its endpoint. So WireGuard's packets for that peer go
through the tunnel to the relay, sealed for the peer inside of what is sealed for the relay.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from controller.wire.base import Address
from controller.wire.netmap import Peer, SelfNode
from controller.wire.relays import Relay, Relays

from .model import DesiredPeer, LinkSettings, Network, Route

__all__ = ["behind_relays", "places", "relay_routes"]

# What a packet for a peer behind a relay grows by inside of the tunnel: IPv6 40, UDP 8, WireGuard 32 bytes.
_OVERHEAD: Final = 80
# Seconds. A relay must be able to begin a packet for this host at any time, whatever firewall is in between.
_KEEPALIVE: Final = 25


def places(relays: Relays, node: SelfNode) -> list[Address]:
    """The host's own places: behind each relay that it may use, and in its own prefix if it is one."""
    return [place for _, place in _placed(relays, node)]


def relay_routes(relays: Relays, node: SelfNode) -> Iterator[Route]:
    """To the places of others."""
    for relay, place in _placed(relays, node):
        yield Route(destination=Network.parse(relay.prefix), source=Network.host(place))


def behind_relays(wanted: DesiredPeer, peer: Peer, relays: Relays, link: LinkSettings) -> DesiredPeer:
    """A peer with what it is allowed because of relays: from a relay, all that it forwards; from whoever uses this host
    as a relay, what comes from its place. And with less room where it is found behind one."""
    found: set[Network] = set()
    keepalive = wanted.keepalive
    for relay in relays.usable:
        if relay.node == peer.id:
            found.add(Network.parse(relay.prefix))
            keepalive = keepalive or _KEEPALIVE
    if relays.own is not None and peer.kind == "agent" and (place := relays.own.place(peer.addresses)) is not None:
        found.add(Network.host(place))
    mtu = _mtu(wanted, relays, link)
    if not found and mtu == wanted.mtu:
        return wanted
    return replace(wanted, allowed_ips=wanted.allowed_ips | found, keepalive=keepalive, mtu=mtu)


def _mtu(wanted: DesiredPeer, relays: Relays, link: LinkSettings) -> int:
    """Bytes of the largest packet, 0 for the link's MTU: whatever is known of the path that it was before."""
    if wanted.endpoint is None or not relays.usable or relays.behind(str(wanted.endpoint)) is None:
        return wanted.mtu
    room = link.mtu - _OVERHEAD
    return min(wanted.mtu, room) if wanted.mtu else room


def _placed(relays: Relays, node: SelfNode) -> Iterator[tuple[Relay, Address]]:
    for relay in (*relays.usable, *((relays.own,) if relays.own is not None else ())):
        place = relay.place(node.addresses)
        if place is not None:
            yield relay, place
