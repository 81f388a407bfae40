"""Which objects of one node's map may have changed: names only, never values.

Produced by the state when it applies a change, kept by the log for hosts that resume, and consumed when a delta is
written: that states the value which each object has by then. So merging two is the union of their names.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.wire.base import Address
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["Affected", "Dirty", "merged"]


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

    def is_empty(self) -> bool:
        return not (self.node or self.peers or self._has_more())

    def _has_more(self) -> bool:
        return bool(self.rules or self.sets or self.elements or self.services or self.calls or self.names)

    def concerns(self, node_id: NodeId) -> bool:
        """False when nothing, or only the node as its own peer, is named: a shared value may name everybody."""
        return not self.is_empty() and (self.node or self._has_more() or self.peers != {node_id})

    def size(self) -> int:
        """How many names it holds: its share of a bounded log."""
        objects = sum(map(len, (self.peers, self.rules, self.sets, self.services, self.calls, self.names)))
        return 1 + objects + sum(map(len, self.elements.values()))

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
        for name, addresses in other.elements.items():
            self.add_elements(name, addresses)


Affected = dict[NodeId, Dirty]


def merged(parts: list[Dirty]) -> Dirty:
    """The union of any number; a single part is answered as it is."""
    if len(parts) == 1:
        return parts[0]
    union = Dirty()
    for part in parts:
        union.merge(part)
    return union
