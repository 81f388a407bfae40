"""What a controller does now and then: notes of who was seen, and the removal of what stayed away or is too old.

Each as seldom as it may be: an idle controller sleeps. What is to be removed, one controller of the mesh removes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Final

from controller.clock import ClockWatch
from controller.context import Context
from controller.nodes import PRESENCE_STEP
from controller.store.engine import StoreError

__all__ = ["tidying"]

_log = logging.getLogger(__name__)
# Seconds.
_SOON: Final = 60.0
_SELDOM: Final = 300.0
_RECORDS: Final = 3600.0  # forgetting them takes the writers' turn
_ABSENCE_PARTS: Final = 10  # looks in the time that an ephemeral node may be away

_Work = Callable[[], Awaitable[float]]  # returns after how many seconds it is to be done again


def tidying(context: Context, ephemeral_after: timedelta) -> list[Coroutine[None, None, None]]:
    """The work, each part to be run until it is cancelled; ephemeral nodes may be away for `ephemeral_after`."""
    clock, since = ClockWatch(context.now), context.now()
    between_looks = min(max(ephemeral_after.total_seconds() / _ABSENCE_PARTS, 1.0), _SELDOM)

    def watch_clock() -> None:
        # Absence counts from when it was set, as it does from the start: put forward, it makes no day of a minute.
        nonlocal since
        if step := clock.step():
            _log.warning("the clock was put %s by %s", "forward" if step > timedelta() else "back", abs(step))
            since = context.now()
            context.hub.clock_was_set()

    async def bring_up() -> float:
        watch_clock()
        context.hub.bring_up()
        return _SOON

    async def note_presence() -> float:
        await context.nodes.note_presence(context.now())
        return PRESENCE_STEP.total_seconds()

    async def remove_absent() -> float:
        watch_clock()
        if context.replicas.leads:
            removed = await context.nodes.expire(now=context.now(), since=since, after=ephemeral_after)
            if removed:
                _log.info("removed ephemeral nodes that stayed away: %s", ", ".join(removed))
        return between_looks

    async def forget_controllers() -> float:
        if context.replicas.leads:
            await context.replicas.sweep()
        return _SELDOM

    async def forget_calls() -> float:
        watch_clock()
        settled = (context.now() - since).total_seconds() >= _RECORDS  # a wrong clock must not cost a month's records
        more = context.replicas.leads and settled and await context.calls.expire()
        return _SOON if more else _RECORDS

    return [_regularly(work) for work in (bring_up, note_presence, remove_absent, forget_controllers, forget_calls)]


async def _regularly(work: _Work) -> None:
    pause = _SOON
    while True:
        await asyncio.sleep(pause)
        try:
            pause = await work()
        except StoreError as error:
            _log.error("tidying failed and is tried again: %s", error)
            pause = _SOON
