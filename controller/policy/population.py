"""Who is behind each selector of a document: the nodes of a fleet, and nodes that could join it.

Answers as the reference model does (a test compares them), for all nodes at once instead of one by one.
"""

from collections.abc import Iterable, Set

from controller.wire.base import Address

from .document import ANYONE, Document, Selector
from .model import Member
from .prefixes import PrefixTable

__all__ = ["Population"]

_NOBODY: frozenset[Member] = frozenset()


class Population:
    """The active nodes, by selector."""

    def __init__(self, document: Document, members: Iterable[Member]) -> None:
        self._document = document
        self._prefixes = PrefixTable({f"host:{host.name}": host.prefix for host in document.hosts.values()})
        self._groups_of = document.groups_of()
        self._keys: dict[Member, frozenset[str]] = {}
        self._members: dict[str, set[Member]] = {}
        for member in members:
            self._keys[member] = self.keys({f"node:{member.name}", *member.tags}, member.addresses)
            for key in self._keys[member]:
                self._members.setdefault(key, set()).add(member)

    @property
    def members(self) -> Set[Member]:
        return self._keys.keys()

    def matching(self, selector: Selector) -> Set[Member]:
        return self._members.get(selector.key, _NOBODY)

    def keys(self, own: Set[str], addresses: Iterable[Address]) -> frozenset[str]:
        """Keys of all selectors that match a node with these tags (and name) and addresses."""
        keys = {ANYONE, *own, *self._prefixes.holding(addresses)}
        return frozenset(keys.union(*(self._groups_of.get(key, ()) for key in keys)))

    def keys_of(self, member: Member) -> frozenset[str]:
        return self._keys[member]

    def imagined(self, selector: Selector) -> list[frozenset[str]]:
        """Nodes that could join and match `selector`, each as the keys of the selectors that would match it.

        They have nothing else: no further tag, no name that the policy knows. A node selector has none, since its name
        is taken; a group has those of its members, and a service those of what it is on.
        """
        match selector.kind:
            case "any":
                return [self.keys(set(), ())]
            case "tag":
                return [self.keys({selector.key}, ())]
            case "host":
                address = self._prefixes.free_address(self._document.hosts[selector.name].prefix)
                return [] if address is None else [self.keys(set(), (address,))]
            case "group":
                members = self._document.groups[selector.name].members
                return [node for member in members for node in self.imagined(member)]
            case "svc":
                on = self._document.services[selector.name].on
                return [node for inner in on for node in self.imagined(inner)]
            case "node":
                return []
