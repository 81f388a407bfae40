"""Which objects of one node's map may have changed: names only, never values.

Produced by the state when it applies a change, kept by the log for hosts that resume, and consumed when a delta is
written: that states the value which each object has by then. So merging two is the union of their names.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from controller.wire.base import Address
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["Affected", "Dirty", "Touched", "merged"]

_OWN: Final = 16  # an empty one is some 1.7 KB, as much as this many names


@dataclass(slots=True, eq=False)
class Dirty:
    """Names of objects in one node's map.

    `sets` came into use or went out of it and are stated whole; of sets that stay in use, only `elements`.
    Not changed any more once it left the function that filled it: many nodes may share one.
    """

    node: bool = False
    peers: set[NodeId] = field(default_factory=set)
    rules: set[str] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)
    elements: dict[str, set[Address]] = field(default_factory=dict)
    services: set[ServiceName] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    names: set[ServiceName] = field(default_factory=set)
    forwards: set[str] = field(default_factory=set)

    def is_empty(self) -> bool:
        return not (self.node or self.peers or self._has_more())

    def _has_more(self) -> bool:
        return bool(self.sets or self.elements or any(self._named()))

    def concerns(self, node_id: NodeId) -> bool:
        """False when nothing, or only the node as its own peer, is named: a shared value may name everybody."""
        return not self.is_empty() and (self.node or self._has_more() or self.peers != {node_id})

    def size(self) -> int:
        """How many names it holds: its share of a bounded log."""
        return _OWN + sum(map(len, (self.peers, self.sets, *self._named(), *self.elements.values())))

    def add_elements(self, name: str, addresses: Iterable[Address]) -> None:
        self.elements.setdefault(name, set()).update(addresses)

    def merge(self, other: "Dirty") -> None:
        self.node = self.node or other.node
        self.peers |= other.peers
        self.rules |= other.rules
        self.sets |= other.sets
        self.services |= other.services
        self.calls |= other.calls
        self.names |= other.names
        self.forwards |= other.forwards
        for name, addresses in other.elements.items():
            self.add_elements(name, addresses)

    def _named(self) -> tuple[set[str], ...]:
        return self.rules, self.services, self.calls, self.names, self.forwards


Affected = dict[NodeId, Dirty]


class Touched:
    """Gathers, part by part, whom a change touches and in what. Nodes with the same parts share one value of them all.

    So what a change costs, and what the log keeps of it, hardly grows with the nodes that it touches.
    """

    def __init__(self) -> None:
        self._parts: dict[NodeId, tuple[Dirty, ...]] = {}

    def add(self, nodes: Iterable[NodeId], dirty: Dirty) -> None:
        """These nodes are touched in this, too; it is not changed any more."""
        for node_id in nodes:
            before = self._parts.get(node_id)
            self._parts[node_id] = (dirty,) if before is None else (*before, dirty)

    def forget(self, node_id: NodeId) -> None:
        """The node has no map any more."""
        self._parts.pop(node_id, None)

    def affected(self) -> Affected:
        """Whose maps differ, and in what."""
        unions: dict[tuple[int, ...], Dirty] = {}
        found: Affected = {}
        for node_id, parts in self._parts.items():
            which = tuple(map(id, parts))
            if which not in unions:
                unions[which] = merged(parts)
            if unions[which].concerns(node_id):
                found[node_id] = unions[which]
        return found


def merged(parts: Sequence[Dirty]) -> Dirty:
    """The union of any number; a single part is answered as it is."""
    if len(parts) == 1:
        return parts[0]
    union = Dirty()
    for part in parts:
        union.merge(part)
    return union
