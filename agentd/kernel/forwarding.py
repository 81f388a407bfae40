"""What the table has for relays: a host lets sealed packets through that come by way of one, a relay passes them on.

Pure. A relay passes on what looks like WireGuard's messages and connectivity checks, between the places of hosts whom a
grant connects, and nothing else; what is in them it cannot read. In the table, as in `ruleset`: source address -> chain
of a profile -> map of the destinations. Bits of the payload are counted from where the UDP header begins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from agentd.model import Chain, Container, LinkSettings
from controller.wire.base import Address
from controller.wire.netmap import Netmap
from controller.wire.relays import Relay, Relays, relays_of
from controller.wire.stun import COOKIE

__all__ = ["PAIRS", "TO_RELAY", "Forwarding", "forwarding", "relayed_places"]

# Set of (source, destination) with a counter each: which hosts use this relay to reach whom.
PAIRS: Final = "relayed"
TO_RELAY: Final = "relay"  # the chain that a relay's hook forward jumps to
_RATES: Final = "relay.rates"
_FROM: Final = "relay.from"
_MEGABYTE: Final = "mbytes"
# Handshake initiation, response, cookie and data: a type and three zeros (section 5.4 of the WireGuard paper).
_WIREGUARD: Final = "@th,64,32 { 0x01000000, 0x02000000, 0x03000000, 0x04000000 }"
_CHECKS: Final = f"@th,64,16 {{ 0x0001, 0x0101 }} @th,96,32 {COOKIE:#x}"  # a request or an answer, RFC 8489 section 5


@dataclass(frozen=True, slots=True)
class Forwarding:
    """The part of a table that is there because of relays."""

    counters: frozenset[str] = frozenset()
    containers: Mapping[str, Container] = field(default_factory=dict)
    chains: Mapping[str, Chain] = field(default_factory=dict)
    elements: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def relayed_places(netmap: Netmap) -> dict[str, dict[str, str]]:
    """What leads packets for and from this host's places behind relays to the chains that let sealed ones through."""
    places = [relay.place(netmap.node.addresses) for relay in relays_of(netmap).usable]
    return {
        f"held.{way}6": {place: f"goto relayed/{way}" for place in places if place is not None} for way in ("in", "out")
    }


def forwarding(netmap: Netmap, link: LinkSettings) -> Forwarding:
    """Empty where there are no relays."""
    relays = relays_of(netmap)
    found = _through(relays, link)
    return found if relays.own is None else _passing(netmap, relays.own, found, link)


def _through(relays: Relays, link: LinkSettings) -> Forwarding:
    if not relays.usable:
        return Forwarding()
    prefixes = f"{{ {', '.join(sorted(relay.prefix for relay in relays.usable))} }}"
    port = link.listen_port
    return Forwarding(
        chains={
            "relayed/in": Chain((f"ip6 nexthdr udp ip6 saddr {prefixes} udp dport {port} accept", "goto deny/in")),
            "relayed/out": Chain((f"ip6 nexthdr udp ip6 daddr {prefixes} udp sport {port} accept", "goto deny/out")),
        }
    )


def _passing(netmap: Netmap, own: Relay, more: Forwarding, link: LinkSettings) -> Forwarding:
    profiles: dict[frozenset[Address], list[Address]] = {}
    for place, targets in _connected(netmap, own).items():
        profiles.setdefault(frozenset(targets), []).append(place)
    chains = dict(more.chains)
    containers = {
        PAIRS: Container("set", "type ipv6_addr . ipv6_addr ; size 65536 ; flags dynamic,timeout ; timeout 1h"),
        _RATES: Container("set", "type ipv6_addr ; size 65536 ; flags dynamic,timeout ; timeout 1m"),
        _FROM: Container("map", "type ipv6_addr : verdict"),
    }
    sources: dict[str, str] = {}
    elements: dict[str, dict[str, str]] = {_FROM: sources}
    for reachable, places in profiles.items():
        name = sha256(" ".join(sorted(reachable)).encode()).hexdigest()[:16]
        to = f"relay.to/{name}"
        containers[to] = Container("map", "type ipv6_addr : verdict")
        elements[to] = dict.fromkeys(sorted(reachable), "goto relay/pass")
        chains[f"relay/from/{name}"] = Chain(
            (f"{_WIREGUARD} ip6 daddr vmap @{to}", f"{_CHECKS} ip6 daddr vmap @{to}", "goto deny/forward")
        )
        sources |= dict.fromkeys(sorted(places), f"goto relay/from/{name}")
    chains[TO_RELAY] = Chain(("ip6 nexthdr != udp goto deny/forward", f"ip6 saddr vmap @{_FROM}", "goto deny/forward"))
    chains["relay/pass"] = Chain((*_limit(link), f"update @{PAIRS} {{ ip6 saddr . ip6 daddr counter }}", _ACCEPT))
    return Forwarding(frozenset({"relayed", "denied/relay"}), containers, chains, elements)


_ACCEPT: Final = 'counter name "relayed" accept'


def _limit(link: LinkSettings) -> Iterable[str]:
    if link.relay_rate:
        limit = f"limit rate over {link.relay_rate} {_MEGABYTE}/second burst {link.relay_rate} {_MEGABYTE}"
        yield f'update @{_RATES} {{ ip6 saddr {limit} }} counter name "denied/relay" drop'


def _connected(netmap: Netmap, own: Relay) -> dict[Address, set[Address]]:
    """By the place of a host behind this relay, the places of those whom a grant connects it with."""
    place_of = {
        address: place
        for peer in netmap.peers.values()
        if (place := own.place(peer.addresses)) is not None
        for address in peer.addresses
    }

    def places(names: Iterable[str]) -> set[Address]:
        found = (netmap.sets[name].addresses for name in names if name in netmap.sets)
        return {place_of[address] for addresses in found for address in addresses if address in place_of}

    connected: dict[Address, set[Address]] = {}
    for forward in netmap.forwards.values():
        one, other = places(forward.between), places(forward.and_)
        for froms, tos in ((one, other), (other, one)):
            for place in froms if tos else ():
                connected.setdefault(place, set()).update(tos)
    return {place: found - {place} for place, found in connected.items() if found - {place}}
