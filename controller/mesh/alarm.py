"""A timer for a moment of a clock that can be set. Knows nothing of what is due then."""

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["Alarm"]

_LONGEST: Final = 86400.0  # seconds; what is due later is asked for again


class Alarm:
    """Calls once, when its time has come or after a day: whoever is called says when the next time is."""

    def __init__(self, clock: Callable[[], float], ring: Callable[[], None]) -> None:
        """`clock`: seconds since the epoch."""
        self._clock = clock
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def set(self, due: float | None) -> None:
        """From now on this time counts (seconds since the epoch), None for never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            delay = min(max(due - self._clock(), 0.0), _LONGEST)
            self._timer = asyncio.get_running_loop().call_later(delay, self._ring)
