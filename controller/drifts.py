"""Somebody else changed what agentd made on a host: an audit entry with the host as its actor. Knows no frames."""

import time
from typing import Final

from controller.audit import Action
from controller.store.store import Store
from controller.wire.netmap import NodeId

__all__ = ["Drifts"]

_APART: Final = 10.0  # seconds; two programs that undo each other's work must not fill the audit


class Drifts:
    """Records them, one for each host in ten seconds at most."""

    def __init__(self, store: Store, apart: float = _APART) -> None:
        self._store, self._apart = store, apart
        self._last: dict[NodeId, float] = {}

    async def record(self, node: NodeId, what: str) -> None:
        """Raises StoreError. What a node that was removed says is not recorded."""
        now = time.monotonic()
        if now - self._last.get(node, -self._apart) < self._apart:
            return
        self._last[node] = now
        async with self._store.mutation(f"node:{node}", Action.NODE_DRIFT, f"node:{node}") as tx:
            if await tx.nodes.get(node) is None:
                tx.discard()
            tx.record(new={"put_back": what})
