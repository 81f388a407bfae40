"""How many streams are opened at the same time, and when those that come beyond that should come back.

After a start all hosts come at once. Some are greeted, the next wait, and the rest are told when it will be their turn:
so they are admitted at a steady rate, and requests of people are answered in between. Knows no HTTP.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final

__all__ = ["Place", "Turnstile"]

_AT_ONCE: Final = 32  # together they hold up everything else for some 50 ms at most
_WAITING: Final = 1000  # greeted within seconds: hosts have patience for 30
_PACE: Final = 0.005  # seconds for a stream, before any was measured
_WEIGHT: Final = 0.05  # of the newest measurement
_LATEST: Final = 60  # seconds


class Turnstile:
    """One for all streams, used from one event loop. `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float], at_once: int = _AT_ONCE, waiting: int = _WAITING) -> None:
        self._clock = clock
        self._turns = asyncio.Semaphore(at_once)
        self._waiting = waiting
        self._inside = 0
        self._pace = _PACE
        self._left = 0.0
        self._promised = 0.0  # until then, hosts that were refused have been told to come

    @property
    def inside(self) -> int:
        """Streams that are being opened."""
        return self._inside

    def enter(self) -> "Place | None":
        """Begin to open a stream; None when too many are waiting already."""
        if self._inside >= self._waiting:
            return None
        self._inside += 1
        return Place(self)

    def come_back(self) -> int:
        """Seconds after which a refused host should come: a time of its own, after those who were refused before."""
        now = self._clock()
        self._promised = max(self._promised, now + self._inside * self._pace) + self._pace
        return min(max(math.ceil(self._promised - now), 1), _LATEST)

    async def turn(self) -> None:
        await self._turns.acquire()

    def leave(self, *, had_turn: bool) -> None:
        self._inside -= 1
        if not had_turn:
            return
        self._turns.release()
        now = self._clock()
        if self._turns.locked():  # one after the other without a pause: that is how fast it goes
            self._pace += _WEIGHT * (now - self._left - self._pace)
        self._left = now


class Place:
    """Of one stream in the turnstile."""

    __slots__ = ("_had_turn", "_turnstile")

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile: Turnstile | None = turnstile
        self._had_turn = False

    async def turn(self) -> None:
        """Wait until it is this stream's turn; it lasts until `leave`."""
        if self._turnstile is not None and not self._had_turn:
            await self._turnstile.turn()
            self._had_turn = True

    def leave(self) -> None:
        """The stream is open, or will not be; again and again is the same as once."""
        turnstile, self._turnstile = self._turnstile, None
        if turnstile is not None:
            turnstile.leave(had_turn=self._had_turn)
