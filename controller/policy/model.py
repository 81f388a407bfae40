"""The reference model: may this packet pass, by the document alone?

Written to be read, not to be fast, and without anything of `compile`: tests compare the two, and the kernels' verdicts
with this one. A document's own tests are run by it, too.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from controller.wire.base import Address

from .document import Allowance, Document, Grant, Network, Selector

__all__ = ["Held", "Member", "Packet", "allowing_grants", "may_pass", "selects"]


@dataclass(frozen=True, slots=True)
class Member:
    """What a policy can see of one active node. `tags` are written `tag:x`."""

    name: str
    tags: frozenset[str]
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a flow. `protocol`: `tcp`, `udp`, `icmp` (which stands for ICMPv6, too) or any other name."""

    source: Address
    destination: Address
    protocol: str
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """The addresses of a gateway service, and the name of the node that answers for them now; None: nobody does."""

    addresses: tuple[Address, ...]
    holder: str | None


def may_pass(
    document: Document,
    members: Iterable[Member],
    packet: Packet,
    now: float,
    services: Mapping[str, Held] = MappingProxyType({}),
) -> bool:
    """True when policy lets `packet` go from the node with its source to the node with its destination address.

    `now` is in seconds since the epoch. Addresses that no active node has send and receive nothing; those of
    `services`, by name, open no flows themselves.
    """
    members = list(members)
    owners = {address: member for member in members for address in member.addresses}
    source, destination, service = owners.get(packet.source), owners.get(packet.destination), None
    for name, held in services.items():
        if packet.destination in held.addresses:
            service = name
            destination = next((member for member in members if member.name == held.holder), None)
    if source is None or destination is None:
        return False
    if source == destination:
        return True  # a host's traffic with itself does not cross the mesh
    return bool(allowing_grants(document, source, destination, packet.protocol, packet.port, now=now, service=service))


def allowing_grants(
    document: Document,
    source: Member,
    destination: Member,
    protocol: str,
    port: int | None,
    *,
    now: float,
    service: str | None = None,
) -> list[Grant]:
    """The grants that let `source` open a flow to another node, in the document's order.

    `service`: the flow goes to the addresses of this gateway service, which `destination` holds; None: to its own.
    """
    return [
        grant
        for grant in document.grants
        if (grant.expires is None or now < grant.expires)
        and any(selects(document, selector, source) for selector in grant.from_)
        and any(
            reach.service == service
            and any(names(entry, protocol, port) for entry in reach.ip)
            and any(selects(document, selector, destination) for selector in reach.to)
            for reach in grant.reaches
        )
    ]


def names(entry: Allowance, protocol: str, port: int | None) -> bool:
    """True when an entry of `ip` speaks of this protocol and destination port."""
    if protocol == "icmp":
        return entry.protocol in ("icmp", "*")
    if protocol not in ("tcp", "udp") or port is None or entry.protocol not in (protocol, "*"):
        return False
    low, high = entry.ports
    return low <= port <= high


def selects(document: Document, selector: Selector, member: Member) -> bool:
    """True when `selector` stands for this node. A prefix selects a node, with all of its addresses; a service those
    that may serve it."""
    match selector.kind:
        case "any":
            return True
        case "tag":
            return f"tag:{selector.name}" in member.tags
        case "node":
            return selector.name == member.name
        case "host":
            prefix = document.hosts[selector.name].prefix
            return any(_is_in(address, prefix) for address in member.addresses)
        case "group":
            return any(selects(document, inner, member) for inner in document.groups[selector.name].members)
        case "svc":
            return any(selects(document, inner, member) for inner in document.services[selector.name].on)


def _is_in(address: Address, prefix: Network) -> bool:
    return _parsed(address) in prefix


@lru_cache(maxsize=65536)
def _parsed(address: Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(address)
