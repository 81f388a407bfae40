"""Which of the mesh's controllers this host talks to: it stays with one that works, and goes on to the next. Pure.

The one that the host joined at is always among them, and the first that is tried after a start.
"""

import hashlib
from collections.abc import Iterable

from controller.wire.netmap import NodeId

__all__ = ["Controllers"]


class Controllers:
    """The controllers' URLs, and the one that is used now."""

    def __init__(self, node_id: NodeId, joined_at: str, known: Iterable[str] = ()) -> None:
        self._node_id = node_id
        self._joined_at = joined_at.rstrip("/")
        self._all: list[str] = []
        self.current = self._joined_at
        self.learn(known)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def known(self) -> tuple[str, ...]:
        """All of them, in the order in which they are tried."""
        return tuple(self._all)

    def learn(self, urls: Iterable[str]) -> None:
        """These are the mesh's controllers now. The one in use stays in use while it works."""
        others = {url.rstrip("/") for url in urls} - {self._joined_at}
        # By node, so that the hosts of a controller that dies do not all come to the same other one.
        order = sorted(others, key=lambda url: hashlib.sha256(f"{self._node_id} {url}".encode()).digest())
        self._all = [self._joined_at, *order]

    def failed(self) -> None:
        """The one in use does not work now: go on to the next."""
        at = self._all.index(self.current) if self.current in self._all else -1
        self.current = self._all[(at + 1) % len(self._all)]
