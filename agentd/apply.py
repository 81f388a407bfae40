"""Brings the kernel to the desired map and keeps it there: the only caller of the reconciler's `apply`.

Level-triggered: a new map, somebody else's change, a rule that ended, an address that came or went and a failed
attempt all do the same thing, which is to apply what is desired now. Knows nothing of the controller.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from controller.wire.netmap import Netmap

from .errors import StateError
from .model import KernelError
from .netmap import SavedMap, live_rules, next_expiry, save
from .reconcile import Applied
from .state import StateDir

__all__ = ["Applier", "Kernel", "Outcome"]

log = logging.getLogger("agentd.apply")

_FIRST_RETRY: Final = 1.0
_LONGEST_RETRY: Final = 60.0
# Seconds. While a rule has an end, a wall clock that was set (or a suspended machine's) is noticed within this time.
_LOOK_AT_CLOCK: Final = 60.0
# Seconds until what could not be saved is saved again: the disk may have room by then.
_SAVE_AGAIN: Final = 60.0


class Kernel(Protocol):
    """The part of the reconciler that is needed here."""

    async def apply(self, netmap: Netmap) -> Applied:
        """Make the kernel match. Raises KernelError: the previous state stands."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the last attempt came to: `revision` was tried, `error` says why it is not in force."""

    revision: int
    error: str | None


class Applier:
    """Holds the desired map and the one in force. One task runs `run`; the others call `desire` and `wake`."""

    def __init__(
        self,
        kernel: Kernel,
        state: StateDir,
        *,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self.desired: SavedMap | None = None
        self.in_force: Netmap | None = None
        self.outcome: Outcome | None = None
        self.save_error: str | None = None
        self.drifts = 0
        self.done, self.refused = 0, 0  # attempts
        self._kernel = kernel
        self._state = state
        self._on_outcome = on_outcome
        self._saved: SavedMap | None = None
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._failures = 0
        self._live_then = 0  # rules alive when the last attempt began

    def desire(self, wanted: SavedMap, *, saved: bool = False) -> None:
        """Make `wanted` the desired map; `saved` when it comes from the disk."""
        self.desired = wanted
        self._saved = wanted if saved else self._saved
        self._wake.set()

    def retire(self) -> None:
        """Desire nothing from now on: the host has left."""
        self.desired = None

    def wake(self, reason: str) -> None:
        """Apply again, because something outside the map changed."""
        log.debug("apply again", extra={"reason": reason})
        self._wake.set()

    def drifted(self, reason: str) -> None:
        """Apply again, because somebody else changed what is ours."""
        self.drifts += 1
        log.warning("somebody changed what agentd made; putting it back", extra={"what": reason})
        self._wake.set()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """No apply runs or starts inside."""
        async with self._turn:
            yield

    async def run(self) -> None:
        """Apply whenever there is a reason to, for ever."""
        while True:
            await self._reason()
            async with self._turn:
                await self._apply_once()

    async def _reason(self) -> None:
        """Wait until somebody wakes us, or time has brought a reason."""
        while True:
            try:
                async with asyncio.timeout(self._patience()):
                    await self._wake.wait()
            except TimeoutError:
                if not self._is_time():
                    continue
            self._wake.clear()
            return

    def _patience(self) -> float | None:
        """Seconds until it may be time to apply; None when time brings no reason."""
        if self._failures:
            return min(_FIRST_RETRY * 2.0 ** min(self._failures - 1, 16), _LONGEST_RETRY)
        waits = [] if self.save_error is None else [_SAVE_AGAIN]
        if self.desired is not None and any(rule.expires is not None for rule in self.desired.netmap.rules.values()):
            now = time.time()
            expiry = next_expiry(self.desired.netmap, now)
            waits.append(_LOOK_AT_CLOCK if expiry is None else min(expiry - now, _LOOK_AT_CLOCK))
        return min(waits, default=None)

    def _is_time(self) -> bool:
        """Something is to be tried again, or a rule has ended, or is alive again because the clock was put back."""
        return bool(self._failures) or self.save_error is not None or self._live() != self._live_then

    def _live(self) -> int:
        """How many rules have not ended. The time alone says which, so the number says it, too."""
        return len(live_rules(self.desired.netmap, time.time())) if self.desired else 0

    async def _apply_once(self) -> None:
        wanted = self.desired
        if wanted is None:
            return
        revision, self._live_then = wanted.netmap.revision, self._live()
        if not wanted.resume:
            # A map that denies is saved first: no crash may bring back what was taken away.
            await self._save(wanted)
        try:
            applied = await self._kernel.apply(wanted.netmap)
        except KernelError as error:
            self._failures += 1
            self.refused += 1
            self._settle(Outcome(revision, str(error)))
            return
        self._failures = 0
        self.done += 1
        self.in_force = wanted.netmap
        if wanted is not self._saved:
            await self._save(wanted)
        if applied.operations or self.outcome != Outcome(revision, None):
            log.info("in force revision=%d", revision, extra={"operations": len(applied.operations)})
        self._settle(Outcome(revision, None))

    def _settle(self, outcome: Outcome) -> None:
        if outcome.error and outcome != self.outcome:
            log.error("revision %d is not in force: %s", outcome.revision, outcome.error)
        self.outcome = outcome
        self._on_outcome(outcome)

    async def _save(self, wanted: SavedMap) -> None:
        try:
            await asyncio.to_thread(save, self._state, wanted)
        except StateError as error:
            self._not_saved(str(error))
            return
        self._saved, self.save_error = wanted, None

    def _not_saved(self, why: str) -> None:
        if self.save_error is None:
            log.error("the map is in force but not saved: %s", why)
        self.save_error = why
