"""Questions to peers outside of the checks, each asked once: for people, and for the sizes of packets.

Knows neither keys nor sockets: whoever asks brings how.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from controller.wire.base import Endpoint
from controller.wire.netmap import NodeId

__all__ = ["Questions"]


@dataclass(frozen=True, slots=True)
class _Question:
    """`answer` becomes the time at which it came."""

    node: NodeId
    endpoint: Endpoint
    answer: asyncio.Future[float]


class Questions:
    """Those that wait for their answers, by transaction."""

    def __init__(self) -> None:
        self._open: dict[bytes, _Question] = {}

    def whose(self, transaction: bytes) -> NodeId | None:
        """Which peer was asked by this question; None when it is none of these, or nobody waits any more."""
        question = self._open.get(transaction)
        return None if question is None else question.node

    def answered(self, transaction: bytes, source: Endpoint) -> None:
        """The authentic answer to one of these came from there: from elsewhere it is nothing."""
        question = self._open[transaction]
        if question.endpoint == source and not question.answer.done():
            question.answer.set_result(asyncio.get_running_loop().time())

    async def ask(
        self, node: NodeId, endpoint: Endpoint, transaction: bytes, send: Callable[[], None], *, patience: float
    ) -> float | None:
        """Have `send` ask with this transaction; the round trip time in seconds, None without an answer within
        `patience` seconds."""
        loop = asyncio.get_running_loop()
        question = _Question(node, endpoint, loop.create_future())
        self._open[transaction] = question
        sent = loop.time()
        try:
            send()
            async with asyncio.timeout(patience):
                return await question.answer - sent
        except TimeoutError:
            return None
        finally:
            del self._open[transaction]
