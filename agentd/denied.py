"""Denied packets by flow and minute, in bounded memory. Pure: knows neither kernels nor clocks.

What is heard is a sample, because the table logs at a limited rate for each address; its counters are exact.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from controller.wire.denials import MOST_DENIALS, Where

__all__ = ["DeniedFlow", "DeniedLog", "Flow"]

_MINUTES: Final = 60
_FLOWS: Final = MOST_DENIALS - 1  # a minute: a scan of a whole network must not push everything else out, nor grow


@dataclass(frozen=True, slots=True)
class Flow:
    """Who was denied what. `port`: the destination's, None where there is none."""

    direction: Where
    source: str
    destination: str
    protocol: str  # a name, or the number of one that has no name here
    port: int | None


@dataclass(frozen=True, slots=True)
class DeniedFlow:
    """A flow in one minute (`minute`: seconds since the epoch, a multiple of 60). `flow` None: what did not fit."""

    minute: int
    flow: Flow | None
    packets: int


class DeniedLog:
    """The last `minutes` in which something was denied, `flows` of each at most; the rest of a minute is one number."""

    def __init__(self, minutes: int = _MINUTES, flows: int = _FLOWS) -> None:
        self._minutes, self._flows = minutes, flows
        self._kept: OrderedDict[int, dict[Flow | None, int]] = OrderedDict()  # in the order that they began

    def add(self, flow: Flow, now: float) -> None:
        """Count one packet at `now` (seconds since the epoch)."""
        minute = int(now) // 60 * 60
        counts = self._kept.get(minute)
        if counts is None:
            counts = self._kept[minute] = {}
            while len(self._kept) > self._minutes:
                self._kept.popitem(last=False)
        known: Flow | None = flow if flow in counts or len(counts) - (None in counts) < self._flows else None
        counts[known] = counts.get(known, 0) + 1

    def listed(self, since: int = 0, before: int | None = None) -> Iterator[DeniedFlow]:
        """Oldest minute first, most packets first; minutes from `since` on, and earlier than `before`."""
        for minute, counts in sorted(self._kept.items()):
            if minute >= since and (before is None or minute < before):
                for flow, packets in sorted(counts.items(), key=lambda item: -item[1]):
                    yield DeniedFlow(minute, flow, packets)
