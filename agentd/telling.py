"""What this host tells the controller by itself: its report, what is in force, what was denied or changed, services.

The latest of each kind is kept until a connection stands; what one connection was told, the next is told again. Knows
no kernel and no WebSocket: it is given what to say, and what sends.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from websockets.exceptions import ConnectionClosed

from controller.wire.base import Message, Revision
from controller.wire.stream import SERVING_INTERVAL, Applied, Drift, HostReport, Paths, Report, Serving

from .apply import Applier, Outcome
from .denied_report import DenialReport
from .path_report import is_news

__all__ = ["Telling"]

Send = Callable[[Message], Awaitable[None]]

# Seconds.
_GATHER_DENIED: Final = 2.0
_DENIED_EVERY: Final = 60.0
_DRIFT_EVERY: Final = 11.0
_PATHS_EVERY: Final = 5.0
_PATHS_APART: Final = 30.0
_LONGEST_DRIFT: Final = 1000  # characters

_NO_PATHS: Final = Paths(paths=())


class Telling:
    """What the controller has not been told, and what wakes those who tell it."""

    def __init__(
        self,
        applier: Applier,
        report: Callable[[], HostReport],
        *,
        denied: Callable[[int], Iterable[DenialReport]] = lambda _since: (),
        serving: Callable[[], Mapping[str, str | None]] = dict,
        paths: Callable[[], Paths] = lambda: _NO_PATHS,
    ) -> None:
        """`denied` tells what was denied since a minute, oldest first; `serving`, why a service cannot answer;
        `paths`, how peers are reached and from where this host is seen.
        """
        self._applier = applier
        self._report = report
        self._denied = denied
        self._serving = serving
        self._paths = paths
        self._changed = asyncio.Event()
        self._other_peers = asyncio.Event()
        self._denied_more = asyncio.Event()
        self._drifted = asyncio.Event()
        self._serving_changed = asyncio.Event()
        self._drift: str | None = None
        self._reported: HostReport | None = None
        self._told: Outcome | None = None
        self._first: Revision | None = None  # what this connection began with

    # There is something to tell

    def changed(self) -> None:
        """Something that the controller should know may have changed: the host's report, or what is in force."""
        self._changed.set()
        self._other_peers.set()

    def drifted(self, what: str) -> None:
        """Somebody changed what agentd made; the controller is told, later when it is away."""
        self._drift = what[:_LONGEST_DRIFT]
        self._drifted.set()

    def denied_more(self) -> None:
        """Something was denied that the controller has not been told."""
        self._denied_more.set()

    def serving_changed(self) -> None:
        """A service that this host may serve may be able to answer now, or not any more."""
        self._serving_changed.set()

    # The connection

    def greet(self) -> HostReport:
        """A connection begins: its Hello carries this report, and nothing else has been told there."""
        self._reported, self._told, self._first = self._report(), None, None
        return self._reported

    def brought(self, revision: Revision, *, anew: bool) -> None:
        """The connection brought a map of this revision; `anew`: a whole one."""
        if anew or self._first is None:
            # What was in force before this frame may be of another history: only what follows is told.
            self._first, self._told = revision, None

    async def changes(self, send: Send) -> None:
        """Send what the controller does not know yet, the latest of each kind, until the connection ends."""
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                self._changed.clear()  # before looking: what changes from here on is looked at again
                report = self._report()
                if report != self._reported:
                    self._reported = report
                    await send(Report(report=report))
                outcome = self._applier.outcome
                if outcome is not None and outcome != self._told and self._is_answer(outcome):
                    self._told = outcome
                    await send(Applied(revision=outcome.revision, error=outcome.error))
                await self._changed.wait()

    async def denials(self, send: Send) -> None:
        """Soon after something is denied, and then once a minute at most while more is, until the connection ends."""
        since = 0
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                await self._denied_more.wait()
                await asyncio.sleep(_GATHER_DENIED)
                self._denied_more.clear()
                for minute, frame in list(self._denied(since)):
                    await send(frame)
                    since = minute  # and again with the next: it may not be over
                await asyncio.sleep(_DENIED_EVERY)

    async def drifts(self, send: Send) -> None:
        """The latest that somebody changed, at most once in ten seconds, until the connection ends."""
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                await self._drifted.wait()
                self._drifted.clear()
                if self._drift is not None:
                    await send(Drift(what=self._drift))
                    self._drift = None
                await asyncio.sleep(_DRIFT_EVERY)

    async def services(self, send: Send) -> None:
        """Regularly while there is something to serve, and at once when it changed, until the connection ends."""
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                self._serving_changed.clear()
                services = dict(self._serving())
                if services:
                    await send(Serving(services=services))
                with suppress(TimeoutError):
                    async with asyncio.timeout(SERVING_INTERVAL if services else None):
                        await self._serving_changed.wait()

    async def paths(self, send: Send) -> None:
        """How peers are reached and from where this host is seen, soon after that changed, and twice a minute at most,
        until the connection ends."""
        told = _NO_PATHS
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                await asyncio.sleep(_PATHS_EVERY)
                self._other_peers.clear()  # before looking
                found = self._paths()
                if is_news(told, found):
                    told = found
                    await send(found)
                    await asyncio.sleep(_PATHS_APART - _PATHS_EVERY)
                elif not self._has_peers():  # there is little that could change
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_PATHS_APART):
                            await self._other_peers.wait()

    def _has_peers(self) -> bool:
        return self._applier.in_force is not None and bool(self._applier.in_force.peers)

    def _is_answer(self, outcome: Outcome) -> bool:
        """False for the outcome of a map that this connection did not bring."""
        desired = self._applier.desired
        return (
            self._first is not None
            and desired is not None
            and self._first <= outcome.revision <= desired.netmap.revision
        )
