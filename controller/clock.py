"""The time, as a value that is passed in: expiry and quarantine are tested by moving a clock, not by waiting."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["Clock", "ClockWatch", "utc_now"]

_NOTICEABLE: Final = timedelta(minutes=1)  # what NTP corrects in one step is less

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)


class ClockWatch:
    """Notices that the clock was set, by the one that nobody can set.

    That one stands still while the machine is suspended: waking up looks like a clock that was put forward, and means
    the same to whoever counts how long others were away.
    """

    def __init__(self, now: Clock, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now, self._monotonic = now, monotonic
        self._ahead = self._measured()

    def _measured(self) -> datetime:
        return self._now() - timedelta(seconds=self._monotonic())

    def step(self) -> timedelta:
        """How far the clock was put forward (or back: negative) since the last call; zero when nobody set it."""
        before, self._ahead = self._ahead, self._measured()
        step = self._ahead - before
        return step if abs(step) >= _NOTICEABLE else timedelta()
