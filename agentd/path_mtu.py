"""Looks after the largest packet for each peer: when its path is another, and now and then. Changes no kernel state.

Knows no sockets: the prober asks. What follows for the kernel is a route with that MTU, in the plan.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from controller.wire.base import Endpoint
from controller.wire.netmap import NodeId

from .paths.mtu import interval, search, wireguard_size

__all__ = ["PathMtu"]

log = logging.getLogger("agentd.path_mtu")

_AT_ONCE: Final = 16  # peers
_PATIENCE: Final = 0.3  # seconds for an answer, and three round trips
_MORE: Final = 10  # every so many looks, whether more passes than did


class AskPeer(Protocol):
    """Asks a peer once, with a datagram of `size` bytes; the round trip time in seconds, None without an answer."""

    async def __call__(self, node: NodeId, endpoint: Endpoint, *, patience: float, size: int) -> float | None: ...


@dataclass(slots=True)
class _Size:
    endpoint: Endpoint
    rtt: float
    due: float
    found: int | None = None
    looks: int = 0


class PathMtu:
    """Sizes are of inner packets, in bytes."""

    def __init__(self, ask: AskPeer, whole: int, changed: Callable[[], None]) -> None:
        """`whole`: the link's own MTU. `changed` is called when `of` says something else."""
        self._ask, self._whole, self._changed = ask, whole, changed
        self._sizes: dict[NodeId, _Size] = {}
        self._wake = asyncio.Event()

    def of(self, node: NodeId) -> int | None:
        """The largest that passes; None when it is not known."""
        size = self._sizes.get(node)
        return size.found if size else None

    def look(self, node: NodeId, endpoint: Endpoint, rtt: float) -> None:
        """The peer is reached there now; until it is known what passes, what passed before is taken."""
        before = self._sizes.get(node)
        found = before.found if before else None
        self._sizes[node] = _Size(endpoint, rtt, due=self._now, found=found)
        self._wake.set()

    def keep(self, nodes: Collection[NodeId]) -> None:
        """Forget all others."""
        for node in [node for node in self._sizes if node not in nodes]:
            del self._sizes[node]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            now = self._now
            due = [node for node, size in self._sizes.items() if size.due <= now][:_AT_ONCE]
            if due:
                await asyncio.gather(*(self._look_at(node, self._sizes[node]) for node in due))
                continue
            following = min((size.due for size in self._sizes.values()), default=None)
            self._wake.clear()
            try:
                async with asyncio.timeout_at(following):
                    await self._wake.wait()
            except TimeoutError:
                pass  # somebody is due

    async def _look_at(self, node: NodeId, size: _Size) -> None:
        patience = max(_PATIENCE, 3 * size.rtt)

        async def passes(inner: int) -> bool:
            return await self._ask(node, size.endpoint, patience=patience, size=wireguard_size(inner)) is not None

        size.looks += 1
        first = self._whole if size.found is None or size.looks % _MORE == 0 else size.found
        size.due = self._now + interval(len(self._sizes))
        found = await search(passes, first, self._whole)
        if found is None or found == size.found:
            return
        before, size.found = size.found or self._whole, found
        if found != before and self._sizes.get(node) is size:
            log.info("the path carries other packets", extra={"peer": node, "endpoint": size.endpoint, "mtu": found})
            self._changed()

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()
