"""Questions to hosts about their kernels, and who waits for the answers. A host that is silent has no answer: no error.

Knows no sockets: the hub sends, and the stream hands in what comes back.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from controller.mesh.hub import Hub
from controller.wire.asking import ANSWER_WITHIN, Answer, Ask
from controller.wire.netmap import NodeId
from controller.wire.rules import Flow

__all__ = ["Questions"]

_MOST_WAITING: Final = 20_000  # questions without an answer yet, of all requests together


class Questions:
    """One per process."""

    def __init__(self, hub: Hub, within: float = ANSWER_WITHIN) -> None:
        self._hub, self._within = hub, within
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[NodeId, asyncio.Future[Answer]]] = {}

    async def ask(
        self, flows: Mapping[NodeId, Sequence[Flow]], *, counters: bool = False, relayed: bool = False
    ) -> dict[NodeId, Answer]:
        """Ask these hosts, all at once, each about its flows; returns the answers that came in time."""
        asked: list[int] = []
        try:
            for node_id, wanted in flows.items():
                if len(self._waiting) >= _MOST_WAITING:
                    break
                question = Ask(id=next(self._ids), flows=tuple(wanted), counters=counters, relayed=relayed)
                if self._hub.ask(node_id, question):
                    self._waiting[question.id] = node_id, asyncio.get_running_loop().create_future()
                    asked.append(question.id)
            waiting = [self._waiting[number] for number in asked]
            if waiting:
                await asyncio.wait([future for _, future in waiting], timeout=self._within)
            return {node_id: future.result() for node_id, future in waiting if future.done()}
        finally:
            for number in asked:
                del self._waiting[number]

    def answered(self, node_id: NodeId, answer: Answer) -> None:
        """A host's answer; one that comes too late, or to what this host was not asked, is nobody's."""
        asked, future = self._waiting.get(answer.id, (None, None))
        if asked == node_id and future is not None and not future.done():
            future.set_result(answer)
