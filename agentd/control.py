"""The connection to the controller: the I/O around `session`, one coroutine for each phase.

Receives the map, hands it to the applier, and lends the stream to those who tell, answer or ship while it stands.
Knows nothing of kernels; whatever the controller does, the map in force stays.
"""

import asyncio
import logging
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from controller.wire.base import Address, Message
from controller.wire.netmap import FoldError, fold
from controller.wire.stream import (
    Ask,
    Bye,
    DeltaFrame,
    Hello,
    Recorded,
    Snapshot,
    controller_frame,
)
from controller.wire.stream import Controllers as ControllersFrame

from .apply import Applier
from .asked import Asked
from .background import running
from .controllers import Controllers
from .dial import FAILURES, broken, dial
from .errors import ControllerError, StateError
from .netmap import SavedMap, denied
from .records import RecordsPost
from .renew import due, renew
from .session import Event, Phase, Session, step
from .state import NodeFile, StateDir
from .telling import Telling

__all__ = ["Control"]

log = logging.getLogger("agentd.control")

# Seconds. Long sleeps are cut, because a suspended machine's monotonic clock stands still.
_LONGEST_SLEEP: Final = 3600.0
_RENEWAL_RETRY: Final = 600.0
_GREETING_PATIENCE: Final = 30.0

_BYE: Final = {
    "replaced": Event.REPLACED,
    "removed": Event.REMOVED,
    "disabled": Event.DISABLED,
    "shutdown": Event.SHUTDOWN,
    "protocol": Event.REFUSED,
}
_GO_ON: Final = {Event.LOST, Event.SHUTDOWN, Event.CERTIFICATE_REFUSED}  # to another controller, if there is one
_NODE_REMOVED: Final = "urn:wardmesh:problem:node-removed"


@dataclass(frozen=True, slots=True)
class Standing:
    """The session as `agentd status` tells it."""

    url: str
    phase: Phase
    since: datetime
    connected: datetime | None
    error: str | None
    retry: datetime | None


class Control:
    """Runs the connection of one node for as long as the daemon runs."""

    def __init__(
        self,
        state: StateDir,
        node: NodeFile,
        applier: Applier,
        telling: Telling,
        *,
        asked: Asked,
        records: RecordsPost | None = None,
    ) -> None:
        """`telling`, `asked` and `records` use the stream while it stands."""
        self._state = state
        self._node = node
        self._applier = applier
        self._telling = telling
        self._records = records or RecordsPost()
        self._asked = asked
        self._controllers = Controllers(node.node_id, node.url, state.controllers())
        self._session = Session(resume=applier.desired is None or applier.desired.resume)
        self._phases = {
            Phase.WAITING: self._wait,
            Phase.RENEWING: self._renew,
            Phase.CONNECTING: self._connect,
            Phase.GREETING: self._greet,
            Phase.STREAMING: self._stream,
            Phase.PARKED: self._park,
        }
        self._socket: ClientConnection | None = None
        self._error: str | None = None
        self._since = datetime.now(UTC)
        self._connected: datetime | None = None
        self._renewal_not_before = 0.0  # in the event loop's time
        self._asked_to_wait = 0.0  # seconds, by the controller's last answer
        self._hurry = asyncio.Event()
        self._leaving = False

    @property
    def standing(self) -> Standing:
        """Where the connection stands now."""
        session = self._session
        retry = None
        if session.phase is Phase.WAITING:
            retry = datetime.fromtimestamp(self._since.timestamp() + session.pause, UTC)
        return Standing(self._controllers.current, session.phase, self._since, self._connected, self._error, retry)

    def leave(self, *, leaving: bool) -> None:
        """The host leaves by its own will (or, after all, does not): being removed is then no news."""
        self._leaving = leaving

    def addresses_changed(self, own: Iterable[Address]) -> None:
        """This host has these addresses now: a stream from another is dead, and what waits need not wait longer."""
        self._hurry.set()
        self._telling.changed()
        if self._socket is not None and self._socket.local_address and self._socket.local_address[0] not in set(own):
            self._socket.transport.abort()  # else only the next missing pong would tell

    def slept(self) -> None:
        """This host slept: the controller has given up the stream, or is about to, and nothing here would tell."""
        self._hurry.set()
        if self._socket is not None:
            self._socket.transport.abort()

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        try:
            while True:
                event = await self._phases[self._session.phase]()
                await self._move(event)
        finally:
            await self._close()

    async def _move(self, event: Event) -> None:
        # Another controller may take us at once.
        least = self._asked_to_wait if len(self._controllers) == 1 else 0.0
        before = replace(self._session, choices=len(self._controllers), least=least)
        self._asked_to_wait = 0.0
        self._session = step(before, event, random.random())  # noqa: S311 (jitter)
        if event in _GO_ON:
            self._controllers.failed()
        if self._session.phase is before.phase:
            return
        self._since = datetime.now(UTC)
        log.debug("%s: %s, then %s", before.phase, event, self._session.phase)
        if event in {Event.REMOVED, Event.DISABLED} and not self._leaving:
            self._deny(event)
        if self._session.phase is Phase.STREAMING:
            self._connected, self._error = self._since, None
            log.info("connected to %s", self._controllers.current)
        if self._session.phase in {Phase.WAITING, Phase.PARKED}:
            self._connected = None
            await self._close()

    def _deny(self, event: Event) -> None:
        """The controller said that this node is no member (now): nothing may pass."""
        log.warning("this node was %s by an administrator: no peer is reachable any more", event)
        if self._applier.desired is not None:
            self._applier.desire(SavedMap(denied(self._applier.desired.netmap), resume=False))

    # The phases

    async def _wait(self) -> Event:
        self._hurry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._session.pause):
                await self._hurry.wait()
        overdue = self._session.renew or self._renewal_due() <= datetime.now(UTC)
        allowed = asyncio.get_running_loop().time() >= self._renewal_not_before
        return Event.RENEWAL_DUE if overdue and allowed else Event.PAUSE_OVER

    async def _renew(self) -> Event:
        # One attempt, good or bad, is enough for a while: the stream's own attempts follow, and they have their pauses.
        self._renewal_not_before = asyncio.get_running_loop().time() + _RENEWAL_RETRY
        try:
            node = self._node.model_copy(update={"url": self._controllers.current})
            certificate = await asyncio.to_thread(renew, self._state, node)
        except (ControllerError, StateError) as error:
            self._fail(f"the node's certificate was not renewed: {error}")
            if isinstance(error, ControllerError) and error.kind == _NODE_REMOVED:
                return Event.REMOVED
            if isinstance(error, ControllerError) and not error.final:
                self._renewal_not_before = 0.0  # nobody was there: with the next attempt to connect
            return Event.RENEWAL_FAILED
        log.info("renewed the node's certificate until %s", certificate.not_valid_after_utc)
        return Event.RENEWED

    async def _connect(self) -> Event:
        try:
            self._socket = await dial(self._controllers.current, self._state, self._node)
        except FAILURES as error:
            return self._broken(error)
        return Event.OPENED

    async def _greet(self) -> Event:
        desired, report = self._applier.desired, self._telling.greet()
        revision = desired.netmap.revision if desired and self._session.resume else None
        try:
            timeline = desired.netmap.mesh.timeline if desired else ""
            await self._send(Hello(revision=revision, mesh=self._node.mesh.id, timeline=timeline, report=report))
            async with asyncio.timeout(_GREETING_PATIENCE):
                return await self._receive()
        except TimeoutError:
            self._fail(f"the controller did not send a map within {_GREETING_PATIENCE:.0f} s")
            return Event.LOST
        except (ConnectionClosed, OSError) as error:
            return self._broken(error)

    async def _stream(self) -> Event:
        async with running(
            self._telling.changes(self._send),
            self._telling.services(self._send),
            self._telling.denials(self._send),
            self._telling.drifts(self._send),
            self._telling.paths(self._send),
            self._renew_in_time(),
        ):
            try:
                event = Event.MAP
                async with self._asked.connected(self._send):
                    with self._records.connected(self._send):
                        while event is Event.MAP:
                            event = await self._receive()
            except (ConnectionClosed, OSError) as error:
                return self._broken(error)
        return event

    async def _park(self) -> Event:
        never: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        return await never

    # What they are made of

    async def _receive(self) -> Event:
        """Take frames until one ends a phase or brings a map. Raises ConnectionClosed."""
        assert self._socket is not None
        while True:
            text = await self._socket.recv()
            try:
                frame = controller_frame.validate_json(text)
            except ValidationError as error:
                self._fail(f"the controller sent a frame that this agentd cannot read: {error.errors()[0]['msg']}")
                return Event.GAP
            if isinstance(frame, Recorded):
                self._records.recorded(frame)
            elif isinstance(frame, Ask):
                self._asked.heard(frame)
            elif isinstance(frame, ControllersFrame):
                self._learn(frame)
            else:
                break
        if isinstance(frame, Bye):
            self._fail(f"the controller closed the connection ({frame.reason}): {frame.detail}")
            return _BYE[frame.reason]
        return self._take(frame)

    def _learn(self, frame: ControllersFrame) -> None:
        self._controllers.learn(frame.urls)
        if self._state.controllers() == frame.urls:
            return
        try:
            self._state.write_controllers(frame)
        except StateError as error:
            log.warning("after a restart, this host will know fewer controllers: %s", error)

    def _take(self, frame: Snapshot | DeltaFrame) -> Event:
        desired = self._applier.desired
        if isinstance(frame, Snapshot):
            netmap = frame.netmap
        elif desired is None:
            self._fail("the controller sent a change of a map that this host does not have")
            return Event.GAP
        else:
            try:
                netmap = fold(desired.netmap, frame.delta)
            except FoldError as error:
                self._fail(f"the controller sent a change that does not continue this host's map: {error}")
                return Event.GAP
        if netmap.mesh.id != self._node.mesh.id or netmap.node.id != self._node.node_id:
            self._fail(
                f"the controller sent a map for {netmap.node.id} in mesh {netmap.mesh.id}, which is not this node"
            )
            return Event.GAP
        self._telling.brought(netmap.revision, anew=isinstance(frame, Snapshot))
        self._applier.desire(SavedMap(netmap))
        return Event.MAP

    async def _renew_in_time(self) -> None:
        """Renew while the stream stands; the new certificate serves the next connection."""
        loop = asyncio.get_running_loop()
        while True:
            left = (self._renewal_due() - datetime.now(UTC)).total_seconds()
            left = max(left, self._renewal_not_before - loop.time())
            if left > 0:
                await asyncio.sleep(min(left, _LONGEST_SLEEP))
                continue
            await self._renew()
            self._renewal_not_before = loop.time() + _RENEWAL_RETRY

    def _renewal_due(self) -> datetime:
        """When to renew; at once when the certificate cannot be read, because renewing says why."""
        try:
            certificate = self._state.certificate()
        except StateError as error:
            self._fail(str(error))
            certificate = None
        return due(certificate) if certificate else datetime.now(UTC)

    def _broken(self, error: Exception) -> Event:
        found = broken(self._controllers.current, error)
        self._asked_to_wait = found.wait
        self._fail(found.reason)
        return Event.CERTIFICATE_REFUSED if found.refused else Event.LOST

    def _fail(self, error: str) -> None:
        if error != self._error and not self._leaving:
            log.warning("%s", error)
        self._error = error

    async def _send(self, message: Message) -> None:
        assert self._socket is not None
        await self._socket.send(message.model_dump_json(exclude_none=True))

    async def _close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()
