"""What hosts denied lately, in bounded memory. Pure; never in the database: a flood must not become rows."""

from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from controller.wire.denials import Denial, HostDenial
from controller.wire.netmap import NodeId

__all__ = ["DenialBook"]

_MINUTES: Final = 60  # of each host
_DENIALS: Final = 100_000  # of all hosts together: some 50 MB


class DenialBook:
    """The last minutes of each host. A host's newer word on a minute replaces its older one."""

    def __init__(self, minutes: int = _MINUTES, denials: int = _DENIALS) -> None:
        self._minutes, self._most = minutes, denials
        self._kept: OrderedDict[tuple[NodeId, datetime], tuple[Denial, ...]] = OrderedDict()  # oldest word first
        self._of_node: dict[NodeId, OrderedDict[datetime, None]] = {}
        self._count = 0

    def heard(self, node: NodeId, minute: datetime, denials: tuple[Denial, ...]) -> None:
        """A host's whole account of one minute."""
        self._drop(node, minute)
        self._kept[node, minute] = denials
        mine = self._of_node.setdefault(node, OrderedDict())
        mine[minute] = None
        self._count += len(denials)
        if len(mine) > self._minutes:
            self._drop(node, next(iter(mine)))
        while self._count > self._most and len(self._kept) > 1:
            self._drop(*next(iter(self._kept)))

    def newest(self, node: NodeId | None = None) -> Iterator[HostDenial]:
        """Of one host, or of all: the newest minute first."""
        chosen = [key for key in self._kept if node in {None, key[0]}]
        for key in sorted(chosen, key=lambda key: (key[1], key[0]), reverse=True):
            for denial in self._kept[key]:
                yield HostDenial(node=key[0], **dict(denial))

    def _drop(self, node: NodeId, minute: datetime) -> None:
        denials = self._kept.pop((node, minute), None)
        if denials is None:
            return
        self._count -= len(denials)
        mine = self._of_node[node]
        del mine[minute]
        if not mine:
            del self._of_node[node]
