"""When to look whether the tunnel to a new peer came up, and whose turn it is to begin it again. Pure.

Two hosts that learn of each other at about the same time both begin the handshake, each drops what it began when the
other's comes, and neither answer finds what it answers. Or the first beginning comes before the other host knows us.
WireGuard begins again after five seconds (REKEY_TIMEOUT); a peer that answers checks has us in its kernel by now.
"""

import math
from collections.abc import Mapping
from typing import Final

from controller.wire.base import PublicKey
from controller.wire.netmap import NodeId

__all__ = ["Meeting"]

# Seconds after the first answer. A handshake takes as long as a check did. Not both at once: they would meet again.
_LEADS: Final = 0.3
_FOLLOWS: Final = 1.5
_TOGETHER: Final = 0.5  # looking costs as much for one peer as for all: those of this time wait for each other


class Meeting:
    """The peers of one host, each looked after once. Times are seconds of one clock that only goes forward."""

    def __init__(self) -> None:
        self._keys: dict[NodeId, PublicKey] = {}
        self._due: dict[NodeId, float] = {}  # who has answered; infinity: looked after
        self._late: set[NodeId] = set()
        self._told: set[NodeId] = set()

    def keep(self, keys: Mapping[NodeId, PublicKey]) -> None:
        """These are the peers in the kernel now, with WireGuard's public keys; what `is_late` told of is done."""
        for node in [node for node, key in self._keys.items() if keys.get(node) != key]:
            self._due.pop(node, None)
            self._late.discard(node)
        self._late -= self._told
        self._told.clear()
        self._keys = dict(keys)

    def answered(self, node: NodeId, now: float, *, leads: bool) -> None:
        """A peer's authentic answer came. `leads` is true for one of any two hosts, and false for the other."""
        if node in self._keys and node not in self._due:
            at = now + (_LEADS if leads else _FOLLOWS)
            self._due[node] = math.ceil(at / _TOGETHER) * _TOGETHER

    def wake_at(self) -> float | None:
        """When `look` has something to say, None for not before something is told."""
        return min((at for at in self._due.values() if at < math.inf), default=None)

    def look(self, now: float) -> bool:
        """True when the tunnels to some peers should be up by now."""
        due = {node for node, at in self._due.items() if at <= now}
        self._due |= dict.fromkeys(due, math.inf)
        self._late |= due
        return bool(due)

    def is_late(self, node: NodeId) -> bool:
        """True when a handshake with this peer that was begun and not finished is to be begun again."""
        if node in self._late:
            self._told.add(node)
        return node in self._late
