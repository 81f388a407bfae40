"""What changed before this controller read the mesh: lets a host that was served before that be continued. Pure.

Only the names of nodes and services are known of the past, not what they were. That is enough, because a delta states
present values: a host that holds revision r is told of every node and service that changed since, whether it saw them
or not. Where that is not so (the rules changed, a grant ended), a host gets a snapshot.
"""

from bisect import bisect_right
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from controller.records import PastChange
from controller.wire.base import Revision
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["Named", "Past"]

# Each is some 25 bytes in the delta of every host that comes back; with more of them, a snapshot is hardly larger.
MAX_NAMES: Final = 500
# Seconds that the clocks of two controllers of one mesh may differ, or that one may have been put back.
_CLOCKS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Named:
    """The nodes and services that changed."""

    nodes: Set[NodeId]
    services: Set[ServiceName]


class Past:
    """The changes up to the revision that was loaded, `end`, as far back as a map of then can be continued."""

    def __init__(
        self, end: Revision, changes: Sequence[PastChange], ended: float | None, most: int = MAX_NAMES
    ) -> None:
        """`changes`: the last ones, oldest first, without gaps. `ended`: when a grant last ended by its time."""
        self.end: Final = end
        self._floor = end
        self._changes: list[PastChange] = []
        names: set[str] = set()
        for change in reversed(changes):
            if ended is not None and change.time <= ended + _CLOCKS:
                self._floor = change.revision + 1  # a map of this revision may still have the grant
                break
            self._floor = change.revision
            names.update(change.nodes, change.services)
            if change.rules or len(names) > most:
                break
            self._changes.append(change)
        self._changes.reverse()

    def since(self, node_id: NodeId, revision: Revision) -> Named | None:
        """What changed after `revision`; None when that is too long ago, or the node itself changed."""
        if not self._floor <= revision <= self.end:
            return None
        later = self._changes[bisect_right(self._changes, revision, key=lambda change: change.revision) :]
        nodes = {node for change in later for node in change.nodes}
        if node_id in nodes:
            return None
        return Named(nodes, {service for change in later for service in change.services})
