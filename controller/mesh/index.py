"""Members and addresses of every selector that the policy uses, kept up to date node by node.

The set of a gateway service is the exception: it has members, the nodes that may serve it, but holds the addresses of
the service itself. Knows nothing of grants or views.
"""

from collections.abc import Iterable, Set

from controller.policy.compile import Role
from controller.wire.base import Address
from controller.wire.netmap import AddressSet, NodeId

__all__ = ["Index"]

_NOBODY: frozenset[NodeId] = frozenset()
_EMPTY: frozenset[Address] = frozenset()


class Index:
    """Selector key -> nodes, and selector key -> their addresses."""

    def __init__(self) -> None:
        self._members: dict[str, set[NodeId]] = {}
        self._addresses: dict[str, set[Address]] = {}
        self._own: dict[str, frozenset[Address]] = {}  # of gateway services
        self._sets: dict[str, AddressSet] = {}  # as the wire wants them; made when asked for, dropped when changed

    def add(self, node_id: NodeId, role: Role, addresses: Iterable[Address]) -> None:
        for key in role:
            self._members.setdefault(key, set()).add(node_id)
            self._addresses.setdefault(key, set()).update(addresses)
            self._sets.pop(key, None)

    def remove(self, node_id: NodeId, role: Role, addresses: Iterable[Address]) -> None:
        """Take back an `add`. An address belongs to one node at a time, so no other member can still hold it."""
        for key in role:
            self._members[key].remove(node_id)
            self._addresses[key].difference_update(addresses)
            self._sets.pop(key, None)
            if not self._members[key]:
                del self._members[key], self._addresses[key]

    def pin(self, key: str, addresses: Iterable[Address]) -> None:
        """From now on the set holds these addresses, whoever its members are."""
        self._own[key] = frozenset(addresses)
        self._sets.pop(key, None)

    def is_pinned(self, key: str) -> bool:
        return key in self._own

    def members(self, key: str) -> Set[NodeId]:
        return self._members.get(key, _NOBODY)

    def has(self, key: str, address: Address) -> bool:
        return address in self._present(key)

    def address_set(self, key: str) -> AddressSet:
        found = self._sets.get(key)
        if found is None:
            # Addresses were checked when their node was: checking each again would cost more than all else here.
            found = AddressSet.model_construct(name=key, addresses=frozenset(self._present(key)))
            self._sets[key] = found
        return found

    def _present(self, key: str) -> Set[Address]:
        return self._own[key] if key in self._own else self._addresses.get(key, _EMPTY)

    def members_of(self, keys: Iterable[str]) -> set[NodeId]:
        """Every node in any of the sets."""
        return set().union(*(self.members(key) for key in keys))
