"""Which relays this host is found behind: the nearest, its home, and a spare. Pure.

What happens                              home           spare
a relay answers, and there is none        it             -
a relay answers, and there is no spare    stays          it
another is clearly nearer than the home   the other      the old home
another is clearly nearer than the spare  stays          the other
the home does not answer any more         the spare      the nearest other that answers
the spare does not answer any more        stays          the nearest other that answers

Peers are told of both by the controller, so neither is given up for a little: a change costs everybody a delta.
"""

from collections.abc import Mapping
from typing import Final

from controller.wire.netmap import NodeId

__all__ = ["RelayChoice"]

_SMOOTH: Final = 8  # answers that an average looks back on, about; RFC 6298 section 2 has 8, too
# How much nearer another must be than one in use: in seconds, and in parts of its time.
_CLEARLY: Final = 0.005
_PARTS: Final = 0.7


class RelayChoice:
    """The choice of one host. `chosen`: home first, then the spare; fewer where fewer answer."""

    def __init__(self) -> None:
        self.chosen: tuple[NodeId, ...] = ()
        self._last: dict[NodeId, float] = {}
        self._average: dict[NodeId, float] = {}

    def update(self, answering: Mapping[NodeId, float]) -> bool:
        """These relays answer, with the round trip times (seconds) of their last answers. True when that changed it."""
        self._average = {node: self._averaged(node, rtt) for node, rtt in answering.items()}
        self._last = dict(answering)
        before, left = self.chosen, set(answering)
        kept = [node for node in before if node in left]
        found: list[NodeId] = []
        while left and len(found) < 2:
            nearest = min(left, key=lambda node: (self._average[node], node))
            incumbent = kept[0] if kept else nearest
            taken = nearest if self._is_clearly_nearer(nearest, incumbent) else incumbent
            found.append(taken)
            left.discard(taken)
            kept = [node for node in kept if node != taken]
        self.chosen = tuple(found)
        return self.chosen != before

    def _averaged(self, node: NodeId, rtt: float) -> float:
        if node not in self._average:
            return rtt
        average = self._average[node]
        return average if rtt == self._last[node] else average + (rtt - average) / _SMOOTH

    def _is_clearly_nearer(self, one: NodeId, than: NodeId) -> bool:
        return self._average[one] < self._average[than] * _PARTS - _CLEARLY
