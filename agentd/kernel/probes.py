"""Packets that stand for a host's traffic: what its map allows over the mesh link, and WireGuard's own. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Final

from agentd.model import LinkSettings
from controller.wire.base import Address
from controller.wire.netmap import Netmap, Rule
from controller.wire.rules import Flow

from .conditions import Open, Packet
from .ruleset import live_rules

__all__ = ["Probe", "of_flow", "probes"]

_FirstOf = Callable[[str, bool], Address | None]
_MOST_RULES: Final = 200  # a status must not take seconds
_ANY: Final = Open()
_EPHEMERAL: Final = Open()  # the port that the one who opens a flow takes
_OUTSIDE: Final = frozenset({"lo"})


@dataclass(frozen=True, slots=True)
class Probe:
    """A packet, the hooks that it passes in order, and its name for people."""

    packet: Packet
    hooks: tuple[str, ...]
    traffic: str
    is_answer: bool = False


_ARRIVING: Final = ("prerouting", "input")
_LEAVING: Final = ("output", "postrouting")


def probes(netmap: Netmap | None, link: LinkSettings, now: float) -> Iterator[Probe]:
    """WireGuard's own packets, and then what each rule of the map allows: the first packet, and its answer."""
    yield from _wireguard(link)
    if netmap is None:
        return
    first_of = _firsts(netmap)
    for rule in islice(live_rules(netmap, now), _MOST_RULES):
        port = rule.ports[0][0] if rule.ports else None
        for peer, own in _pairs(netmap, rule, first_of):
            flow = Flow(direction=rule.direction, peer=peer, protocol=rule.protocol, port=port, local=own)
            yield from of_flow(flow, own, link, now)


def of_flow(flow: Flow, own: Address, link: LinkSettings, now: float) -> Iterator[Probe]:
    """The first packet of a flow between a peer and this host's address `own`, and the answer to it."""
    port = f":{flow.port}" if flow.port is not None else ""
    name = f"{flow.protocol}{port}"
    first = "opened by peers" if flow.direction == "in" else "opened from here"
    inward = flow.direction == "in"
    yield Probe(
        _packet(flow, own, link, now, answer=False, arriving=inward),
        _ARRIVING if inward else _LEAVING,
        f"{name} over {link.name}, {first}",
    )
    yield Probe(
        _packet(flow, own, link, now, answer=True, arriving=not inward),
        _LEAVING if inward else _ARRIVING,
        f"answers to {name} over {link.name}, {first}",
        is_answer=True,
    )


def _packet(flow: Flow, own: Address, link: LinkSettings, now: float, *, answer: bool, arriving: bool) -> Packet:
    six = ":" in own
    protocol = "icmpv6" if six and flow.protocol == "icmp" else flow.protocol
    source, destination = (flow.peer, own) if arriving else (own, flow.peer)
    fields: dict[str, object] = dict(_interfaces(link.name, arriving=arriving))
    fields |= _addresses(six, source, destination) | _flow_state(answer) | _common(six, protocol, now)
    if flow.port is not None:
        fields |= (
            {"th sport": flow.port, "th dport": _EPHEMERAL}
            if answer
            else {
                "th sport": _EPHEMERAL,
                "th dport": flow.port,
            }
        )
    else:
        fields[f"{protocol} type"] = "echo-reply" if answer else "echo-request"
    fields["fib daddr type"], fields["fib saddr type"] = ("local", "unicast") if arriving else ("unicast", "local")
    return Packet(six, protocol, fields)


def _wireguard(link: LinkSettings) -> Iterator[Probe]:
    """What carries the tunnel, on whatever other link."""
    for six in (False, True):
        for arriving in (True, False):
            fields = dict(_interfaces(Open(_OUTSIDE | {link.name}), arriving=arriving))
            fields |= _addresses(six, _ANY, _ANY) | _flow_state(answer=False) | _common(six, "udp", 0)
            own, other = ("th dport", "th sport") if arriving else ("th sport", "th dport")
            fields |= {own: link.listen_port, other: _ANY}
            fields["fib daddr type"] = "local" if arriving else "unicast"
            yield Probe(
                Packet(six, "udp", fields),
                _ARRIVING if arriving else _LEAVING,
                f"WireGuard's udp:{link.listen_port}, {'begun by peers' if arriving else 'sent from here'}",
            )


def _interfaces(name: object, *, arriving: bool) -> Iterator[tuple[str, object]]:
    side, other = ("i", "o") if arriving else ("o", "i")
    for key in ("if", "ifname"):
        yield f"meta {side}{key}", name
        yield f"meta {other}{key}", ""  # a packet for this host, or from it, has one link


def _addresses(six: bool, source: object, destination: object) -> dict[str, object]:
    family = "ip6" if six else "ip"
    return {f"{family} saddr": source, f"{family} daddr": destination}


def _flow_state(answer: bool) -> dict[str, object]:
    state, direction = ("established", "reply") if answer else ("new", "original")
    return {"ct state": state, "ct direction": direction, "ct status": "confirmed", "ct mark": 0}


def _common(six: bool, protocol: str, now: float) -> dict[str, object]:
    return {
        "meta nfproto": "ipv6" if six else "ipv4",
        "meta protocol": "ip6" if six else "ip",
        "meta l4proto": protocol,
        "meta mark": 0,
        "meta pkttype": "host",
        "meta time": int(now),
        "ip protocol": protocol,
        "ip6 nexthdr": protocol,
    }


def _pairs(netmap: Netmap, rule: Rule, first_of: _FirstOf) -> Iterator[tuple[Address, Address]]:
    """For each family, one peer of the rule and the address of this host that it may be for."""
    owns = netmap.node.addresses
    if rule.local:
        meant = {address for name in rule.local if name in netmap.sets for address in netmap.sets[name].addresses}
        owns = tuple(address for address in netmap.node.held if address in meant)
    for six in (False, True):
        peers = (first_of(name, six) for name in rule.peers)
        peer = min((address for address in peers if address is not None), default=None)
        own = min((address for address in owns if (":" in address) == six), default=None)
        if peer is not None and own is not None:
            yield peer, own


def _firsts(netmap: Netmap) -> _FirstOf:
    """One address of a set and family that is not the host's own: sets are large, and rules share them."""
    owns = {*netmap.node.addresses, *netmap.node.held}

    @cache
    def first_of(name: str, six: bool) -> Address | None:
        members = netmap.sets[name].addresses if name in netmap.sets else ()
        return min((one for one in members if (":" in one) == six and one not in owns), default=None)

    return first_of
