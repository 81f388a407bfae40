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
    """`netcheck` is the report as JSON: a tenth of what its objects take, and it is seldom looked at.

    `chosen`: of its relays, those that the host chose, and how far they are in seconds.
    """

    paths: tuple[PathReport, ...] = ()
    netcheck: str | None = None
    chosen: tuple[tuple[NodeId, float | None], ...] = ()

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
        word = _Word(paths)
        if netcheck is not None:
            chosen = {relay.node: relay.rtt for relay in netcheck.relays if relay.chosen}  # hosts may say one twice
            word = _Word(paths, netcheck.model_dump_json(), tuple(chosen.items()))
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
        said = self._said.get(node, _Word()).netcheck
        return NetcheckReport.model_validate_json(said) if said is not None else None

    def relays(self, node: NodeId) -> tuple[tuple[NodeId, float | None], ...]:
        """The relays that a host is found behind, its first one first, and how far they are in seconds."""
        return self._said.get(node, _Word()).chosen
