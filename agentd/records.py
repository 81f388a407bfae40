"""Records of calls on their way from this host's gateways to the controller: one batch at a time, each acknowledged.

Keeps nothing: what the controller has not acknowledged is still in the gateway's spool, and comes again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from websockets.exceptions import ConnectionClosed

from controller.wire.base import Message
from controller.wire.stream import Calls, Recorded

from .errors import AgentError
from .gateway_messages import RecordsKept, RecordsRequest

__all__ = ["RecordsPost"]

_PATIENCE: Final = 30.0  # seconds that the controller has for an answer
_SPOOLS: Final = 64  # one a worker of a gateway; what more there may be is not worth memory
_AWAY: Final = "the controller is away: the records stay in the gateway's spool until it is back"


class RecordsPost:
    """The way of records; open while the stream stands."""

    def __init__(self, patience: float = _PATIENCE) -> None:
        self._patience = patience
        self._send: Callable[[Message], Awaitable[None]] | None = None
        self._turn = asyncio.Lock()
        self._waiting: tuple[Calls, asyncio.Future[int | None]] | None = None
        self._behind: OrderedDict[str, int] = OrderedDict()  # by spool; heard of longest ago first

    @property
    def unshipped(self) -> int:
        """How many records the spools hold that the controller has not acknowledged, as they said last."""
        return sum(self._behind.values())

    def _note(self, spool: str, behind: int) -> None:
        self._behind[spool] = behind
        self._behind.move_to_end(spool)
        if len(self._behind) > _SPOOLS:
            self._behind.popitem(last=False)

    @contextmanager
    def connected(self, send: Callable[[Message], Awaitable[None]]) -> Iterator[None]:
        """Ship with `send` until the block ends; what then waits for an answer gets none."""
        self._send = send
        try:
            yield
        finally:
            self._send = None
            if self._waiting is not None and not self._waiting[1].done():
                self._waiting[1].set_result(None)

    async def ship(self, request: RecordsRequest) -> RecordsKept:
        """Send, and return when the controller has acknowledged. Raises AgentError when it is away or silent."""
        self._note(request.spool, len(request.records) + request.behind)
        async with self._turn:
            if self._send is None:
                raise AgentError(_AWAY)
            # It was checked when it was parsed.
            frame = Calls.model_construct(
                type="calls", spool=request.spool, first=request.first, records=request.records
            )
            answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
            self._waiting = frame, answer
            try:
                async with asyncio.timeout(self._patience):
                    await self._send(frame)
                    through = await answer
            except TimeoutError:
                raise AgentError(f"the controller did not acknowledge records within {self._patience:g} s") from None
            except ConnectionClosed as error:
                raise AgentError(_AWAY) from error
            finally:
                self._waiting = None
        if through is None:
            raise AgentError(_AWAY)
        self._note(request.spool, request.behind)
        return RecordsKept(through=through)

    def recorded(self, frame: Recorded) -> None:
        """The controller's answer. One to an earlier batch, whose sender has given up, says nothing of this one."""
        if self._waiting is None:
            return
        asked, answer = self._waiting
        if frame.spool == asked.spool and frame.through >= asked.first and not answer.done():
            answer.set_result(frame.through)
