"""What hosts' gateways recorded: kept once each, for as long as the operator wants. Knows no frames and no SQL."""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from controller.clock import Clock
from controller.store.store import Store
from controller.wire.call_records import CallRecord
from controller.wire.netmap import NodeId

__all__ = ["CallBook"]

_log = logging.getLogger(__name__)
_BATCH: Final = 1000  # records deleted in one transaction: some milliseconds
_BATCHES: Final = 60  # in one round, so that a round ends
_Serves = Callable[[NodeId], frozenset[str]]


class CallBook:
    """The records of all hosts. `serves` names the services that policy lets a node serve.

    A host is believed of these only. What it says of another is kept as a claim, which no filter by service finds: a
    host that somebody took over must not write the history of others' services. What a host might serve when it was
    last heard still counts, because its records may be older than the policy that took a service away.
    """

    def __init__(self, store: Store, serves: _Serves, keep: timedelta, now: Clock) -> None:
        self._store, self._serves, self._keep, self._now = store, serves, keep, now
        self._served: dict[NodeId, frozenset[str]] = {}

    async def heard(self, node: NodeId, spool: str, first: int, records: Sequence[CallRecord]) -> int:
        """Keep what a host told; returns the spool's last record that is kept. Raises StoreError."""
        own = self._served.get(node, frozenset()) | self._serves(node)
        self._served[node] = own
        return await self._store.keep_calls(node, spool, first, records, own)

    async def expire(self) -> int:
        """Delete some of what is too old, in transactions that hold up nobody; returns how many. Raises StoreError."""
        before, deleted = self._now() - self._keep, 0
        for _ in range(_BATCHES):
            count = await self._store.expire_calls(before, _BATCH)
            deleted += count
            if count < _BATCH:
                break
        if deleted:
            _log.debug("deleted %d records of calls that are older than %s", deleted, self._keep)
        return deleted
