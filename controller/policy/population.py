"""Who is behind each selector of a document: the nodes of a fleet, and nodes that could join it.

Matching is the reference model's; this only avoids asking it about every pair.
"""

import ipaddress
from collections.abc import Iterable

from .document import Document, Network, Selector
from .model import Member, selects

__all__ = ["Population", "imagined"]


class Population:
    """The active nodes, by selector."""

    def __init__(self, document: Document, members: Iterable[Member]) -> None:
        self._document = document
        self.members = tuple(members)
        self._by_name = {f"node:{member.name}": frozenset({member}) for member in self.members}
        self._by_tag: dict[str, set[Member]] = {}
        for member in self.members:
            for tag in member.tags:
                self._by_tag.setdefault(tag, set()).add(member)
        self._found: dict[Selector, frozenset[Member]] = {}

    def matching(self, selector: Selector) -> frozenset[Member]:
        found = self._found.get(selector)
        if found is None:
            found = self._found[selector] = self._search(selector)
        return found

    def _search(self, selector: Selector) -> frozenset[Member]:
        if selector.kind == "node":
            return self._by_name.get(selector.key, frozenset())
        if selector.kind == "tag":
            return frozenset(self._by_tag.get(selector.key, ()))
        return frozenset(member for member in self.members if selects(self._document, selector, member))


def imagined(document: Document, selector: Selector) -> tuple[Member, ...]:
    """Nodes that could join and match `selector`, and have nothing else: no further tag, no name that policy knows.

    A node selector has none (its name is taken), a group has those of its members.
    """
    match selector.kind:
        case "any":
            return (Member("", frozenset(), ()),)
        case "tag":
            return (Member("", frozenset({selector.key}), ()),)
        case "host":
            address = _free_address(document, document.hosts[selector.name].prefix)
            return () if address is None else (Member("", frozenset(), (address,)),)
        case "group":
            members = document.groups[selector.name].members
            return tuple(node for member in members for node in imagined(document, member))
        case "node":
            return ()


def _free_address(document: Document, prefix: Network) -> str | None:
    """The first address of `prefix` that is in no smaller prefix of the document."""
    inside = sorted(
        (int(host.prefix.network_address), int(host.prefix.broadcast_address))
        for host in document.hosts.values()
        if host.prefix.version == prefix.version and host.prefix.prefixlen > prefix.prefixlen
    )
    candidate = int(prefix.network_address)
    for first, last in inside:
        if first <= candidate <= last:
            candidate = last + 1
    if candidate > int(prefix.broadcast_address):
        return None
    return str(ipaddress.IPv4Address(candidate) if prefix.version == 4 else ipaddress.IPv6Address(candidate))
