"""What changed for whom since when: lets a host that comes back get one delta instead of a snapshot.

In memory and bounded. It begins at the revision that was loaded; what is known of before is in `past`.
"""

from collections import deque
from typing import Final

from controller.wire.base import Revision
from controller.wire.netmap import NodeId

from .dirty import Affected, Dirty, merged

__all__ = ["RevisionLog"]

# Names of objects, some 100 bytes each; 500 changes that touch 50 hosts with 5 objects are 150,000.
MAX_SIZE: Final = 200_000


class RevisionLog:
    """Dirty objects by revision and node."""

    def __init__(self, revision: Revision, max_size: int = MAX_SIZE) -> None:
        self._floor = revision  # a map of this revision or a later one can be continued
        self._max_size = max_size
        self._size = 0
        self._changes: deque[tuple[Revision, int, Affected]] = deque()

    def add(self, revision: Revision, affected: Affected) -> None:
        """Remember a change; the oldest are forgotten when there is no room."""
        if not affected:
            return
        size = len(affected) + sum(dirty.size() for dirty in {id(d): d for d in affected.values()}.values())
        self._changes.append((revision, size, affected))
        self._size += size
        while self._size > self._max_size:
            oldest, freed, _ = self._changes.popleft()
            self._floor = oldest
            self._size -= freed

    def forget(self, revision: Revision) -> None:
        """Something changed that no revision tells: nobody may continue a map of `revision` or an earlier one."""
        self._changes.clear()
        self._size = 0
        self._floor = revision + 1

    def since(self, node_id: NodeId, revision: Revision) -> Dirty | None:
        """What changed for a node after `revision`; None when the log does not reach back so far."""
        if revision < self._floor:
            return None
        return merged([affected[node_id] for at, _, affected in self._changes if at > revision and node_id in affected])
