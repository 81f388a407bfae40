"""Several controllers of one mesh, on one PostgreSQL: following each other's commits, telling of hosts, one that leads.

    commits     each takes in every other's changes, in their order, as soon as the database says that there are some
    presence    each tells what it knows of the hosts that are connected to it, and hears what the others tell
    lead        one at a time decides what must be decided once: who holds a service, which ephemeral node has gone

A controller on SQLite is alone: it leads, and there is nobody to follow. No SQL here.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Final

from controller.identity.secret import new_id
from controller.mesh.elsewhere import Replica, Word
from controller.mesh.hub import Hub
from controller.store import replicas as shared
from controller.store.engine import Engines, StoreError
from controller.store.line import line
from controller.store.store import Store
from controller.wire.base import Revision
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["Replicas"]

_log = logging.getLogger(__name__)
# Seconds.
_POLL: Final = 1.0  # what no notification told is found after this long
_COALESCE: Final = 0.25  # between two writes of presence, however much happens
_PULSE: Final = 2.0  # a controller says at least this often that it is there
_REREAD: Final = 60.0  # between readings of all that others said, in case that something was missed
_RETRY: Final = 1.0


class Replicas:
    """This controller among the others. Used from one event loop."""

    def __init__(self, engines: Engines, store: Store, hub: Hub, url: str) -> None:
        self.id: Final = new_id()
        self._engines, self._store = engines, store
        self.hub, self.url = hub, url
        self._leads = engines.sqlite
        self._changes, self._wake = asyncio.Event(), asyncio.Event()
        self._told: tuple[Revision, float] = (-1, 0.0)  # what others know, and since when (event loop's time)
        self._heard: datetime | None = None
        self._reread = 0.0
        self._says: Callable[[NodeId], Mapping[ServiceName, str | None]] = lambda _node: {}
        if not engines.sqlite:
            hub.on_touched(self._wake.set)

    @property
    def leads(self) -> bool:
        """Whether this controller decides for all now."""
        return self._leads

    def services_by(self, says: Callable[[NodeId], Mapping[ServiceName, str | None]]) -> None:
        """`says` answers with what a host that is connected here says of the services that it serves."""
        self._says = says

    async def run(self) -> None:
        """Follow, tell and hear until cancelled; while the database is away, again and again."""
        if not self._engines.sqlite:
            await asyncio.gather(self._follow(), self._exchange())

    async def retire(self) -> None:
        """This controller ends: the others need not wait until they miss it."""
        if self._engines.sqlite:
            return
        try:
            await shared.retire(self._engines, self.id)
        except StoreError as error:
            _log.warning("the other controllers could not be told that this one ends: %s", error)

    async def sweep(self) -> None:
        """Delete what controllers that are long gone have left. Raises StoreError."""
        if not self._engines.sqlite:
            await shared.sweep(self._engines)

    async def _follow(self) -> None:
        while True:
            try:
                async with line(self._engines, self.id, changes=self._changes, presence=self._wake) as opened:
                    while True:
                        self._lead(leads=await opened.lead())
                        self._changes.clear()
                        await self._store.catch_up()
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self._changes.wait(), _POLL)
            except StoreError as error:
                _log.error("other controllers' changes cannot be followed and this is tried again: %s", error)
            finally:
                self._lead(leads=False)
            await asyncio.sleep(_RETRY)

    def _lead(self, *, leads: bool) -> None:
        if leads and not self._leads:
            _log.info("this controller decides for all now")
        self._leads = leads

    async def _exchange(self) -> None:
        while True:
            try:
                await self._tell()
                await self._hear()
            except StoreError as error:
                _log.error("other controllers cannot be told of this one's hosts, which is tried again: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _POLL)
            self._wake.clear()
            await asyncio.sleep(_COALESCE)

    async def _tell(self) -> None:
        now = asyncio.get_running_loop().time()
        touched, revision = self.hub.take_touched(), self.hub.revision
        if not touched and revision == self._told[0] and now - self._told[1] < _PULSE:
            return
        words = {
            node_id: Word(self.id, presence.since, presence, self._says(node_id))
            for node_id in touched
            if (presence := self.hub.here(node_id)).since is not None
        }
        try:
            await shared.tell(self._engines, Replica(self.id, self.url, revision), words)
        except StoreError:
            self.hub.touch(*touched)
            raise
        self._told = revision, now

    async def _hear(self) -> None:
        now = asyncio.get_running_loop().time()
        after = self._heard if now < self._reread else None
        told = await shared.hear(self._engines, self.id, after)
        self._heard = told.now
        if after is None:
            self._reread = now + _REREAD
        self.hub.heard_of(told.replicas, told.words)
        self.hub.served_by([*told.urls | {self.url}])
