"""How hosts said that they reach their peers, in bounded memory. Pure; never in the database: it changes too often."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from controller.wire.netmap import NodeId
from controller.wire.paths import HostPath, PathReport

__all__ = ["PathBook"]

_PATHS: Final = 100_000  # of all hosts together: some 50 MB


class PathBook:
    """The last word of each host."""

    def __init__(self, most: int = _PATHS) -> None:
        self._most = most
        self._said: OrderedDict[NodeId, tuple[PathReport, ...]] = OrderedDict()  # oldest word first
        self._count = 0

    def heard(self, node: NodeId, paths: tuple[PathReport, ...]) -> None:
        """All that a host has to say, instead of what it said before."""
        self._count += len(paths) - len(self._said.pop(node, ()))
        self._said[node] = paths
        while self._count > self._most and len(self._said) > 1:
            self._count -= len(self._said.popitem(last=False)[1])

    def paths(self, wanted: Callable[[NodeId], bool], peer: NodeId | None = None) -> Iterator[HostPath]:
        """From the hosts that are wanted, by id; only those to `peer`, if there is one."""
        for node in sorted(filter(wanted, self._said)):
            for path in self._said[node]:
                if peer in {None, path.peer}:
                    yield HostPath(node=node, **dict(path))
