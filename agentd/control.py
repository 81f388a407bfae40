"""The connection to the controller: the I/O around `session`, one coroutine for each phase.

Receives the map, hands it to the applier, tells the controller what is in force and what changed on this host.
Knows nothing of kernels; whatever the controller does, the map in force stays.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.typing import Subprotocol

from controller.wire.base import Address, Message, Revision
from controller.wire.netmap import FoldError, fold
from controller.wire.rest import Problem
from controller.wire.stream import (
    PROTOCOL,
    SERVING_INTERVAL,
    STREAM_PATH,
    Applied,
    Ask,
    Bye,
    DeltaFrame,
    Drift,
    Hello,
    HostReport,
    Recorded,
    Report,
    Serving,
    Snapshot,
    controller_frame,
)
from controller.wire.stream import Controllers as ControllersFrame

from .apply import Applier, Outcome
from .asked import Asked
from .controllers import Controllers
from .denied_report import DenialReport
from .errors import AgentError, ControllerError, StateError
from .explain import unreachable
from .https import trusting, with_client_certificate
from .netmap import SavedMap, denied
from .records import RecordsPost
from .renew import due, renew
from .session import Event, Phase, Session, step
from .state import CERTIFICATE, CONTROLLERS, IDENTITY_KEY, NodeFile, StateDir

__all__ = ["Control"]

log = logging.getLogger("agentd.control")

# A snapshot of 100,000 peers is below this.
_LARGEST_FRAME: Final = 64 * 1024 * 1024
# Seconds. Long sleeps are cut, because a suspended machine's monotonic clock stands still.
_LONGEST_SLEEP: Final = 3600.0
# The controller pings too, and more often: ours only find out that it is gone without a word, which has no hurry.
_PING_INTERVAL: Final = 60.0
_RENEWAL_RETRY: Final = 600.0
_GREETING_PATIENCE: Final = 30.0
_GATHER_DENIED: Final = 2.0
_DENIED_EVERY: Final = 60.0
_DRIFT_EVERY: Final = 11.0
_LONGEST_DRIFT: Final = 1000  # characters

_BYE: Final = {
    "replaced": Event.REPLACED,
    "removed": Event.REMOVED,
    "disabled": Event.DISABLED,
    "shutdown": Event.SHUTDOWN,
    "protocol": Event.REFUSED,
}
_GO_ON: Final = {Event.LOST, Event.SHUTDOWN, Event.CERTIFICATE_REFUSED}  # to another controller, if there is one
_NODE_REMOVED: Final = "urn:wardmesh:problem:node-removed"
_CERTIFICATE_REQUIRED: Final = "urn:wardmesh:problem:certificate-required"


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
        report: Callable[[], HostReport],
        *,
        denied: Callable[[int], Iterable[DenialReport]] = lambda _since: (),
        asked: Asked,
        records: RecordsPost | None = None,
        serving: Callable[[], Mapping[str, str | None]] = dict,
    ) -> None:
        """`denied` tells what was denied since a minute, oldest first; `serving`, why a service cannot answer.

        `asked` and `records` use the stream while it stands.
        """
        self._state = state
        self._node = node
        self._applier = applier
        self._report = report
        self._denied = denied
        self._records = records or RecordsPost()
        self._serving = serving
        self._serving_changed = asyncio.Event()
        self._asked = asked
        self._denied_more = asyncio.Event()
        self._drift: str | None = None
        self._drifted = asyncio.Event()
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
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._leaving = False
        self._reported: HostReport | None = None
        self._told: Outcome | None = None
        self._first: Revision | None = None  # what this connection began with

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

    def changed(self) -> None:
        """Something that the controller should know may have changed: the host's report, or what is in force."""
        self._changed.set()

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

    def addresses_changed(self, own: Iterable[Address]) -> None:
        """This host has these addresses now: a stream from another is dead, and what waits need not wait longer."""
        self._hurry.set()
        self.changed()
        if self._socket is not None and self._socket.local_address and self._socket.local_address[0] not in set(own):
            self._socket.transport.abort()  # else only the next missing pong would tell

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        try:
            while True:
                event = await self._phases[self._session.phase]()
                await self._move(event)
        finally:
            await self._close()

    async def _move(self, event: Event) -> None:
        before = replace(self._session, choices=len(self._controllers))
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
        url = "wss://" + self._controllers.current.removeprefix("https://").rstrip("/") + STREAM_PATH
        try:
            self._socket = await connect(
                url,
                ssl=self._tls(),
                subprotocols=[Subprotocol(PROTOCOL)],
                compression=None,  # a deflate window would cost more memory than the map
                proxy=None,
                max_size=_LARGEST_FRAME,
                ping_interval=_PING_INTERVAL,
                close_timeout=2,
            )
        except (OSError, InvalidHandshake, ConnectionClosed, AgentError) as error:
            return self._connection_failed(error)
        return Event.OPENED

    async def _greet(self) -> Event:
        desired, report = self._applier.desired, self._report()
        revision = desired.netmap.revision if desired and self._session.resume else None
        self._reported, self._told, self._first = report, None, None
        try:
            timeline = desired.netmap.mesh.timeline if desired else ""
            await self._send(Hello(revision=revision, mesh=self._node.mesh.id, timeline=timeline, report=report))
            async with asyncio.timeout(_GREETING_PATIENCE):
                return await self._receive()
        except TimeoutError:
            self._fail(f"the controller did not send a map within {_GREETING_PATIENCE:.0f} s")
            return Event.LOST
        except (ConnectionClosed, OSError) as error:
            return self._connection_failed(error)

    async def _stream(self) -> Event:
        helpers = [
            asyncio.create_task(helper)
            for helper in (
                self._tell_changes(),
                self._tell_serving(),
                self._tell_denied(),
                self._tell_drift(),
                self._renew_in_time(),
            )
        ]
        try:
            event = Event.MAP
            async with self._asked.connected(self._send):
                with self._records.connected(self._send):
                    while event is Event.MAP:
                        event = await self._receive()
        except (ConnectionClosed, OSError) as error:
            return self._connection_failed(error)
        finally:
            await _stop(helpers)
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
            self._state.write(CONTROLLERS, frame.model_dump_json().encode())
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
        if isinstance(frame, Snapshot) or self._first is None:
            # What was in force before this frame may be of another history: only what follows is told.
            self._first, self._told = netmap.revision, None
        self._applier.desire(SavedMap(netmap))
        return Event.MAP

    async def _tell_changes(self) -> None:
        """Send what the controller does not know yet, the latest of each kind, until the connection ends."""
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                self._changed.clear()  # before looking: what changes from here on is looked at again
                report = self._report()
                if report != self._reported:
                    self._reported = report
                    await self._send(Report(report=report))
                outcome = self._applier.outcome
                if outcome is not None and outcome != self._told and self._is_answer(outcome):
                    self._told = outcome
                    await self._send(Applied(revision=outcome.revision, error=outcome.error))
                await self._changed.wait()

    async def _tell_denied(self) -> None:
        """Soon after something is denied, and then once a minute at most while more is, until the connection ends."""
        since = 0
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                await self._denied_more.wait()
                await asyncio.sleep(_GATHER_DENIED)
                self._denied_more.clear()
                for minute, frame in list(self._denied(since)):
                    await self._send(frame)
                    since = minute  # and again with the next: it may not be over
                await asyncio.sleep(_DENIED_EVERY)

    async def _tell_drift(self) -> None:
        """The latest that somebody changed, at most once in ten seconds, until the connection ends."""
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                await self._drifted.wait()
                self._drifted.clear()
                if self._drift is not None:
                    await self._send(Drift(what=self._drift))
                    self._drift = None
                await asyncio.sleep(_DRIFT_EVERY)

    async def _tell_serving(self) -> None:
        """Regularly while there is something to serve, and at once when it changed, until the connection ends."""
        with suppress(ConnectionClosed):  # the receiver reports it
            while True:
                self._serving_changed.clear()
                if services := dict(self._serving()):
                    await self._send(Serving(services=services))
                with suppress(TimeoutError):
                    async with asyncio.timeout(SERVING_INTERVAL):
                        await self._serving_changed.wait()

    def _is_answer(self, outcome: Outcome) -> bool:
        """False for the outcome of a map that this connection did not bring."""
        desired = self._applier.desired
        return (
            self._first is not None
            and desired is not None
            and self._first <= outcome.revision <= desired.netmap.revision
        )

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

    def _tls(self) -> ssl.SSLContext:
        """TLS with the node's certificate. Raises AgentError."""
        ca, certificate, key = self._state.ca(), self._state.read(CERTIFICATE), self._state.read(IDENTITY_KEY)
        if ca is None or certificate is None or key is None:
            raise StateError(f"{self._state.path} has lost its identity: run `agentd leave --force` and join again")
        context = trusting(None if self._node.trust == "system" else ca)
        try:
            return with_client_certificate(context, certificate, key)
        except ssl.SSLError as error:
            raise StateError(
                f"{self._state.path / CERTIFICATE} or {IDENTITY_KEY} beside it is damaged ({error.reason or error}): "
                "restore both from a backup, or run `agentd leave --force` and join again"
            ) from error

    def _renewal_due(self) -> datetime:
        """When to renew; at once when the certificate cannot be read, because renewing says why."""
        try:
            certificate = self._state.certificate()
        except StateError as error:
            self._fail(str(error))
            certificate = None
        return due(certificate) if certificate else datetime.now(UTC)

    def _connection_failed(self, error: Exception) -> Event:
        url = self._controllers.current
        if isinstance(error, InvalidStatus):
            problem = _problem(error)
            self._fail(f"the controller at {url} refused the stream: {problem.detail}")
            return Event.CERTIFICATE_REFUSED if problem.type == _CERTIFICATE_REQUIRED else Event.LOST
        if isinstance(error, InvalidMessage):
            # In TLS 1.3 our handshake is over before the server looks at our certificate (RFC 8446 section 2), and
            # asyncio's TLS drops the alert that would tell: a refused certificate looks like a connection that ends.
            # Renewing one that was not refused does no harm.
            self._fail(f"the controller at {url} closed the connection without an answer: renewing the certificate")
            return Event.CERTIFICATE_REFUSED
        if isinstance(error, AgentError):
            self._fail(str(error))
        elif isinstance(error, ConnectionClosed):
            self._fail(f"the connection to the controller at {url} broke ({error})")
        else:
            self._fail(str(unreachable(url, error, None)))
        return Event.LOST

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


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def _problem(error: InvalidStatus) -> Problem:
    """What the controller (or whatever stands before it) said instead of opening the stream."""
    response = error.response
    try:
        return Problem.model_validate_json(response.body or b"")
    except ValidationError:
        status = f"HTTP {response.status_code} {response.reason_phrase}"
        return Problem(type="about:blank", title=status, status=response.status_code, detail=status)
