"""How hosts said that they reach their peers, and from where they are seen, in bounded memory.

Pure; never in the database: it changes too often.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from controller.wire.netcheck import NetcheckReport
from controller.wire.netmap import NodeId
from controller.wire.paths import HostPath, PathReport

__all__ = ["PathBook"]

_PATHS: Final = 100_000  # of all hosts together: some 50 MB
_NETCHECK: Final = 5  # as much as so many paths


@dataclass(frozen=True, slots=True)
class _Word:
    paths: tuple[PathReport, ...] = ()
    netcheck: NetcheckReport | None = None

    @property
    def size(self) -> int:
        return len(self.paths) + (_NETCHECK if self.netcheck is not None else 0)


class PathBook:
    """The last word of each host."""

    def __init__(self, most: int = _PATHS) -> None:
        self._most = most
        self._said: OrderedDict[NodeId, _Word] = OrderedDict()  # oldest word first
        self._size = 0

    def heard(self, node: NodeId, paths: tuple[PathReport, ...], netcheck: NetcheckReport | None = None) -> None:
        """All that a host has to say, instead of what it said before."""
        word = _Word(paths, netcheck)
        self._size += word.size - self._said.pop(node, _Word()).size
        self._said[node] = word
        while self._size > self._most and len(self._said) > 1:
            self._size -= self._said.popitem(last=False)[1].size

    def paths(self, wanted: Callable[[NodeId], bool], peer: NodeId | None = None) -> Iterator[HostPath]:
        """From the hosts that are wanted, by id; only those to `peer`, if there is one."""
        for node in sorted(filter(wanted, self._said)):
            for path in self._said[node].paths:
                if peer in {None, path.peer}:
                    yield HostPath(node=node, **dict(path))

    def netcheck(self, node: NodeId) -> NetcheckReport | None:
        """What a host said last of the network that it is in."""
        return self._said.get(node, _Word()).netcheck
