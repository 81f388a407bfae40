"""The controller's questions about this host's kernel: taken from the stream, answered one after another.

Knows no kernel and no WebSocket: it is given who answers, and what sends.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from websockets.exceptions import ConnectionClosed

from controller.wire.asking import Answer, Ask
from controller.wire.base import Message

from .background import running

__all__ = ["Asked"]

_log = logging.getLogger("agentd.asked")
_MOST_WAITING: Final = 64


class Asked:
    """The questions that wait; they are forgotten with the stream that brought them."""

    def __init__(self, answer: Callable[[Ask], Awaitable[Answer]]) -> None:
        """`answer` must not fail: an `Answer` has a place for errors."""
        self._answer = answer
        self._waiting: asyncio.Queue[Ask] = asyncio.Queue(_MOST_WAITING)

    def heard(self, question: Ask) -> None:
        """A question came. One too many gets no answer, which the controller takes for a host that is slow."""
        try:
            self._waiting.put_nowait(question)
        except asyncio.QueueFull:
            _log.warning("the controller asks faster than this host answers: a question is left out")

    @asynccontextmanager
    async def connected(self, send: Callable[[Message], Awaitable[None]]) -> AsyncIterator[None]:
        """Answer with `send` until the block ends."""
        try:
            async with running(self._run(send)):
                yield
        finally:
            self._waiting = asyncio.Queue(_MOST_WAITING)

    async def _run(self, send: Callable[[Message], Awaitable[None]]) -> None:
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                await send(await self._answer(await self._waiting.get()))
