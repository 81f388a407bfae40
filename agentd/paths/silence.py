"""Which peers do not answer any more, by what WireGuard counts and without a packet of ours. Pure.

Whatever comes through a tunnel is answered: by a program, or by WireGuard itself, which sends a keepalive when it had
nothing else to send for ten seconds (KEEPALIVE_TIMEOUT, section 6.5 of its paper).

What happened between two looks               what becomes of the peer
something came from where it is looked for    heard
more went to it than keepalives               waited for, since the first time
it is heard from elsewhere                    waited for, since the first time
nothing of these                              as it was

Who is waited for longer than the patience, and was sent something a second time, is suspected: its path must be asked.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from controller.wire.netmap import NodeId

__all__ = ["Counts", "Silence"]

# Seconds. TCP acknowledges within half a second (RFC 9293 section 3.8.6.3), and sends again after less.
_PATIENCE: Final = 1.0
# Each suspicion doubles it, so that who only sends, or loses much, is not asked again and again. Beyond this, a peer
# that lives has answered by itself.
_LONGEST: Final = 12.0
_FORGIVEN: Final = 1800.0  # seconds without a suspicion, and the patience is as at the beginning
_KEEPALIVE: Final = 32  # bytes: a message without data (section 5.4.6)
_SHORTEST_KEEP: Final = 10.0  # seconds between two of one peer, at least
# Seconds between two looks: while something is sent, and when nothing was for long.
_BUSY: Final = 1.0
_IDLE: Final = 30.0
_SHARE: Final = 0.01  # of a core's time that looks may take while something is sent


@dataclass(frozen=True, slots=True)
class Counts:
    """What WireGuard counted of a peer so far, in bytes. `elsewhere`: its last packet came by way of a relay, and it is
    looked for directly."""

    sent: int
    received: int
    elsewhere: bool = False


@dataclass(slots=True)
class _Seen:
    counts: Counts
    since: float | None = None  # when it began to be waited for
    again: bool = False  # it was sent something since then
    patience: float = _PATIENCE
    suspected: float = -math.inf


class Silence:
    """The peers of one host. Times are seconds of one clock that only goes forward."""

    def __init__(self) -> None:
        self._seen: dict[NodeId, _Seen] = {}
        self._looked: float | None = None
        self._pause = _BUSY

    def look(self, counted: Mapping[NodeId, Counts], now: float) -> frozenset[NodeId]:
        """These are all the peers to watch, as they are now. Returns those that are suspected."""
        passed = now - self._looked if self._looked is not None else 0.0
        self._looked = now
        self._seen = {node: self._seen.get(node) or _Seen(counts) for node, counts in counted.items()}
        kept = _KEEPALIVE * (1 + math.ceil(passed / _SHORTEST_KEEP))
        is_busy = False
        suspected = set()
        for node, counts in counted.items():
            seen = self._seen[node]
            asks = counts.sent - seen.counts.sent > kept
            came = counts.received != seen.counts.received
            is_busy |= asks
            self._happened(seen, now, heard=came and not counts.elsewhere, waits=asks or (came and counts.elsewhere))
            seen.counts = counts
            if seen.since is not None:
                is_busy = True
                if seen.again and now - seen.since >= seen.patience:
                    self._suspect(seen, now)
                    suspected.add(node)
        self._pause = _BUSY if is_busy else min(2 * self._pause, _IDLE)
        return frozenset(suspected)

    def pause(self, cost: float) -> float:
        """Seconds until the next look, when this one took `cost` seconds of a core."""
        return max(self._pause, min(cost / _SHARE, 2 * _IDLE))

    def _happened(self, seen: _Seen, now: float, *, heard: bool, waits: bool) -> None:
        if now - seen.suspected >= _FORGIVEN:
            seen.patience = _PATIENCE
        if heard:
            seen.since, seen.again = None, False
        elif waits and seen.since is None:
            seen.since = now
        elif waits:
            seen.again = True
        elif seen.since is not None and now - seen.since > _LONGEST:
            seen.since, seen.again = None, False  # it was one packet, and nobody missed the answer

    def _suspect(self, seen: _Seen, now: float) -> None:
        seen.patience = min(2 * seen.patience, _LONGEST)
        seen.since, seen.again, seen.suspected = None, False, now
