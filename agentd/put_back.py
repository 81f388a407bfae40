"""What a host does whose clock was put back: it takes a new WireGuard key.

A handshake carries the time, and whoever answers takes one that is not later than the last for a replay (section 5.1 of
WireGuard's paper; wg_noise_handshake_consume_initiation in drivers/net/wireguard/noise.c). A host whose clock was a day
fast and is put right would be ignored by its peers for a day. They take a new key for another peer. The state directory
remembers the time for the next start: a clock may be put back while agentd does not run.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from .errors import AgentError, StateError
from .state import StateDir

__all__ = ["ClockWatch", "watch"]

log = logging.getLogger("agentd.put_back")

_EVERY: Final = 60.0  # seconds between looks at the clock
# Seconds. A tunnel's keys live for three minutes, so after less nobody notices; time services correct less than this.
_TOLERATED: Final = 60.0


class ClockWatch:
    """Compares the clock that can be set with the one that cannot. Pure; both in seconds."""

    def __init__(self, wall: float, monotonic: float) -> None:
        self._ahead = wall - monotonic

    def was_put_back(self, wall: float, monotonic: float) -> bool:
        """True once for each time that the clock was put back, however far it was put forward before."""
        ahead = wall - monotonic
        if ahead < self._ahead - _TOLERATED:
            self._ahead = ahead
            return True
        self._ahead = max(self._ahead, ahead)
        return False


async def watch(rotate: Callable[[], Awaitable[object]], state: StateDir) -> None:
    """Call `rotate` whenever the clock was put back, again each minute while it raises AgentError, for ever.

    Raises StateError when the last time cannot be read.
    """
    memory = _Memory(state)
    # What was put back while nobody looked is noticed at the first look: until then, a time service may put it right.
    clock, is_due = ClockWatch(max(memory.last(), time.time()), time.monotonic()), False
    while True:
        await asyncio.sleep(_EVERY)
        if clock.was_put_back(time.time(), time.monotonic()):
            log.warning("this host's clock was put back: its peers will know it by a new WireGuard key")
            is_due = True
        if is_due:
            try:
                await rotate()
            except AgentError as error:
                log.warning("peers may ignore this host until it has a new WireGuard key: %s", error)
            else:
                is_due = False
        if not is_due:  # else the later time stands: an agentd that ends now must still see what is left to do
            memory.note()


class _Memory:
    """The time that the state directory remembers. One that cannot be written is said once, until it can."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._fails = False

    def last(self) -> float:
        return self._state.last_time() or 0.0

    def note(self) -> None:
        try:
            self._state.note_time()
        except StateError as error:
            if not self._fails:
                log.warning("a clock that is put back while agentd does not run will not be noticed: %s", error)
            self._fails = True
        else:
            self._fails = False
