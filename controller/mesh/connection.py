"""One agent's stream, seen from the mesh: what it still has to be told, and the loop that tells it.

    pending --take--> in flight --sent--> told        (a change meanwhile goes to pending)
       any state --dismiss--> Bye, then the end

Knows no WebSocket: it is given a coroutine that sends a frame.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from controller.wire.base import Revision
from controller.wire.netmap import Delta, Netmap, NodeId
from controller.wire.stream import Ask, Bye, ControllerFrame, Controllers, DeltaFrame, Recorded, Snapshot

from .dirty import Dirty, merged

__all__ = ["Connection", "Maps"]

# Names of objects that wait for a slow agent; beyond that, a snapshot is no larger than the delta.
MAX_PENDING: Final = 20_000
_MERGE_AT: Final = 64
MAX_ASKS: Final = 64  # questions that wait for a slow agent
_MAX_UNACKNOWLEDGED: Final = 16  # frames that are told apart in how long a host is behind


class Maps(Protocol):
    """Where the present values come from."""

    @property
    def revision(self) -> Revision: ...

    def netmap(self, node_id: NodeId) -> Netmap | None: ...

    def delta(self, node_id: NodeId, dirty: Dirty, base: Revision) -> Delta | None: ...


class Connection:
    """A stream of one node. `told` is the revision that the host holds: None before a first snapshot was sent."""

    def __init__(
        self,
        node_id: NodeId,
        maps: Maps,
        told: Revision | None,
        pending: Dirty | None,
        *,
        clock: Callable[[], float],
        since: float,
    ) -> None:
        """With `told` and `pending`, the host's map is continued; without, it gets a snapshot.

        `clock`: seconds since the epoch; `since`: by it, when the host began to lack what it is told first.
        """
        self.node_id: Final = node_id
        self.maps = maps
        self._clock = clock
        self._waits_since: float | None = since  # the oldest of what was not taken yet
        self._unacknowledged: list[tuple[Revision, float]] = []  # what was taken, and the oldest of what is in it
        self.told = told
        self.in_force: Revision | None = None  # of this stream; None until the agent says
        self.is_finished = False
        self._end: asyncio.Event | None = None  # made for who waits for it
        self._pending: list[Dirty] = [] if pending is None else [pending]
        self._whole = pending is None
        self._in_flight = False
        self._recorded: dict[str, Recorded] = {}  # by spool; the latest word is enough
        self._controllers: Controllers | None = None
        self._asks: list[Ask] = []
        self._bye: Bye | None = None
        self._wake = asyncio.Event()
        self._wake.set()
        self._due = True  # the first frame, even when nothing changed

    @property
    def is_waiting(self) -> bool:
        """True while something was not sent yet."""
        return self._whole or bool(self._pending) or self._in_flight

    @property
    def lacks_since(self) -> float | None:
        """When the oldest change came that the host does not say that it has in force."""
        return self._unacknowledged[0][1] if self._unacknowledged else self._waits_since

    def recorded(self, frame: Recorded) -> None:
        """Tell the host that its records are kept."""
        self._recorded[frame.spool] = frame
        self._wake.set()

    def controllers(self, frame: Controllers) -> None:
        """Tell the host which controllers there are, after what else it is told."""
        self._controllers = frame
        self._wake.set()

    def ask(self, question: Ask) -> None:
        """Ask the host; of too many questions that wait, the oldest are forgotten, as their askers have given up."""
        self._asks.append(question)
        del self._asks[:-MAX_ASKS]
        self._wake.set()

    def push(self, dirty: Dirty) -> None:
        """The node's map changed. Cheap: nothing is computed until the agent can take it."""
        if self._whole:
            return
        self._wait()
        self._pending.append(dirty)
        if len(self._pending) >= _MERGE_AT:
            self._pending = [merged(self._pending)]
            if self._pending[0].size() > MAX_PENDING:
                self.restart(self.maps)
        self._due = True
        self._wake.set()

    def restart(self, maps: Maps) -> None:
        """Send a snapshot, of `maps` from now on, instead of whatever waits."""
        self.maps = maps
        self._wait()
        self._whole = self._due = True
        self._pending = []
        self._wake.set()

    def dismiss(self, bye: Bye) -> None:
        """End the stream with `bye`; the first reason stands."""
        self._bye = self._bye or bye
        self._wake.set()

    def applied(self, revision: Revision) -> bool:
        """Note what the host has in force. False when that was never sent to it."""
        if self.told is None or revision > self.told:
            return False
        self.in_force = revision
        self._unacknowledged = [sent for sent in self._unacknowledged if sent[0] > revision]
        return True

    async def begin(self, send: Callable[[ControllerFrame], Awaitable[None]]) -> None:
        """Send the first frame; `run` sends the others. What `send` raises ends the stream."""
        frame = self._take()
        if isinstance(frame, Bye):
            self.dismiss(frame)
        elif frame is not None:
            try:
                await send(frame)
            except BaseException:
                self._finish()
                raise
            self._sent(frame)

    async def run(self, send: Callable[[ControllerFrame], Awaitable[None]]) -> Bye:
        """Send what is pending, again and again, until dismissed; answers with the Bye that was sent last.

        What `send` raises ends the stream: the host then says on its next one which revision it holds.
        """
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while (frame := self._take()) is not None:
                    await send(frame)
                    if isinstance(frame, Bye):
                        return frame
                    self._sent(frame)
        finally:
            self._finish()

    async def finished(self) -> None:
        """Wait until the stream has ended."""
        if not self.is_finished:
            self._end = self._end or asyncio.Event()
            await self._end.wait()

    def _wait(self) -> None:
        if self._waits_since is None:
            self._waits_since = self._clock()

    def _taken(self, revision: Revision) -> None:
        if self._waits_since is not None:
            self._unacknowledged.append((revision, self._waits_since))
            self._waits_since = None
        if len(self._unacknowledged) > _MAX_UNACKNOWLEDGED:
            (_, since), (newest, _) = self._unacknowledged[-2:]
            self._unacknowledged[-2:] = [(newest, since)]

    def _finish(self) -> None:
        self.is_finished = True
        if self._end is not None:
            self._end.set()

    def _sent(self, frame: Snapshot | DeltaFrame | Recorded | Ask | Controllers) -> None:
        if isinstance(frame, Snapshot | DeltaFrame):
            self.told = _revision(frame)
            self._in_flight = False

    def _take(self) -> ControllerFrame | None:
        if self._bye is not None:
            return self._bye
        if not self._due:
            if self._asks:
                return self._asks.pop(0)
            if self._controllers is not None:
                told, self._controllers = self._controllers, None
                return told
            return self._recorded.pop(next(iter(self._recorded))) if self._recorded else None
        self._due = False
        self._in_flight = True
        frame = self._snapshot() if self._whole or self.told is None else self._delta(self.told)
        if frame is None:
            detail = "the controller's record of this node is damaged: its log says how"
            return Bye(reason="protocol", detail=detail)
        self._whole, self._pending = False, []
        self._taken(_revision(frame))
        return frame

    def _snapshot(self) -> Snapshot | None:
        netmap = self.maps.netmap(self.node_id)
        return None if netmap is None else Snapshot.model_construct(type="snapshot", netmap=netmap)

    def _delta(self, base: Revision) -> DeltaFrame | None:
        delta = self.maps.delta(self.node_id, merged(self._pending), base)
        return None if delta is None else DeltaFrame.model_construct(type="delta", delta=delta)


def _revision(frame: Snapshot | DeltaFrame) -> Revision:
    return frame.netmap.revision if isinstance(frame, Snapshot) else frame.delta.revision
