"""Looks at what WireGuard counts of each peer, often while something is sent, and tells of those that do not answer.

It sends nothing, and changes nothing in the kernel.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from controller.wire.base import Endpoint, PublicKey
from controller.wire.netmap import NodeId

from .model import KernelError, ObservedPeer
from .paths.silence import Counts, Silence

__all__ = ["PathTraffic", "ReadPeers"]

log = logging.getLogger("agentd.path_traffic")

_SMOOTH: Final = 8  # looks: some kernels count a thread's time in ticks of 10 ms

ReadPeers = Callable[[], Awaitable[Mapping[PublicKey, ObservedPeer]]]


class PathTraffic:
    """Watches from `run` on, as soon as there are peers and it knows how they are read."""

    def __init__(
        self, suspect: Callable[[Collection[NodeId]], None], is_elsewhere: Callable[[NodeId, Endpoint], bool]
    ) -> None:
        """`suspect` is told who does not answer; `is_elsewhere` says whether a peer that WireGuard hears from there is
        looked for by another sort of path."""
        self._suspect, self._is_elsewhere = suspect, is_elsewhere
        self._silence = Silence()
        self._peers: Mapping[NodeId, PublicKey] = {}
        self._wanted = asyncio.Event()

    def keep(self, peers: Mapping[NodeId, PublicKey]) -> None:
        """Watch these from now on."""
        self._peers = peers
        if peers:
            self._wanted.set()
        else:
            self._wanted.clear()

    async def run(self, read: ReadPeers) -> None:
        """Until cancelled. `read` gives WireGuard's peers as they are now, or raises KernelError."""
        cost = 0.0
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._silence.pause(cost))
            begin = time.thread_time()
            try:
                found = await read()
            except KernelError as error:
                log.warning("whether peers answer is not known: %s", error)
                continue
            suspects = self._silence.look(self._counts(found), asyncio.get_running_loop().time())
            cost += (time.thread_time() - begin - cost) / _SMOOTH
            if suspects:
                log.info("traffic is not answered", extra={"peers": " ".join(sorted(suspects))})
                self._suspect(suspects)

    def _counts(self, found: Mapping[PublicKey, ObservedPeer]) -> dict[NodeId, Counts]:
        return {
            node: Counts(
                sent=peer.tx_bytes,
                received=peer.rx_bytes,
                elsewhere=peer.endpoint is not None and self._is_elsewhere(node, str(peer.endpoint)),
            )
            for node, key in self._peers.items()
            if (peer := found.get(key)) is not None
        }
