"""The agents' WebSocket: who may open it, frames in, frames out. What they mean is the hub's business.

    connect -> (no certificate, TLS below 1.3, other subprotocol, too many at once: an HTTP error)
            -> Hello within HELLO_WITHIN -> its turn among those that come with it -> Report is recorded
            -> map, then deltas; Report and Applied in any order
            -> Bye and close, by whoever ends it: the hub, or a frame that cannot be read

Liveness is the server's WebSocket ping; a stream that does not answer is closed by it.
"""

import asyncio
import logging
import time
from typing import Final

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from controller.api.errors import problem_response
from controller.context import Context, context
from controller.identity import peer_certificate
from controller.mesh import RefusedError
from controller.mesh.connection import Connection
from controller.problems import Kind, Refused
from controller.store.engine import StoreError
from controller.turnstile import Place
from controller.wire.base import Revision
from controller.wire.netmap import NodeId
from controller.wire.stream import (
    PROTOCOL,
    STREAM_PATH,
    AgentFrame,
    Answer,
    Applied,
    Bye,
    Calls,
    ControllerFrame,
    DeltaFrame,
    Denials,
    Drift,
    Hello,
    HostReport,
    Paths,
    Recorded,
    Report,
    Serving,
    Snapshot,
    agent_frame,
)

__all__ = ["Streams"]

_log = logging.getLogger(__name__)

HELLO_WITHIN: Final = 10.0  # seconds
MAX_FRAME: Final = 192 * 1024  # characters; records have two thirds of that at most, a report with 100 endpoints 5,000
_FAREWELL: Final = 5.0  # seconds for an agent to take its Bye
_AWAY: Final = Bye(reason="shutdown", detail="the controller's database does not answer: come back in a while")
_CODES: Final = {"protocol": 1002, "shutdown": 1012}  # RFC 6455 section 7.4.1 and IANA's registry; else 1000


class _BadFrameError(Exception):
    """The agent broke the protocol; the message is for the person who reads its log."""


class Streams:
    """ASGI middleware: serves the streams itself, and passes everything else on to `app`.

    What FastAPI would wrap around each of them stays for as long as it lives, and gives it nothing. `api` is the
    application whose state has the context.
    """

    def __init__(self, app: ASGIApp, api: FastAPI) -> None:
        self._app = app
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "websocket" and scope["path"] == STREAM_PATH:
            scope["app"] = self._api
            await _stream(WebSocket(scope, receive, send))
        else:
            await self._app(scope, receive, send)


async def _stream(websocket: WebSocket) -> None:
    """One agent, from its handshake to its Bye."""
    node_id = peer_certificate.node_id(websocket.scope)
    refusal = _refusal(websocket, node_id)
    ctx = context(websocket)
    if refusal is None and node_id is not None:
        refusal = _too_many(node_id, ctx)
    place = ctx.limits.opening.enter() if refusal is None else None
    if refusal is None and place is None:
        refusal = _come_back(ctx)
    if refusal is not None or node_id is None or place is None:
        await websocket.send_denial_response(refusal or Response(status_code=401))
        return
    try:
        await _serve(websocket, ctx, node_id, place)
    finally:
        place.leave()


async def _serve(websocket: WebSocket, ctx: Context, node_id: NodeId, place: Place) -> None:
    await websocket.accept(subprotocol=PROTOCOL)
    peer_certificate.forget(websocket.scope)
    websocket.scope["headers"] = []
    session = _Session(websocket, ctx, node_id, place)
    try:
        await session.run()
    except WebSocketDisconnect as error:
        _log.debug("node %s went away during the handshake (%s)", node_id, error.code)


def _refusal(websocket: WebSocket, node_id: NodeId | None) -> Response | None:
    if node_id is None:
        return problem_response(
            Kind.CERTIFICATE_REQUIRED, "the stream is for agents: connect with the certificate that enrolment gave"
        )
    if peer_certificate.tls_version(websocket.scope) != peer_certificate.TLS13:
        return problem_response(Kind.BAD_REQUEST, "the stream requires TLS 1.3")
    if PROTOCOL not in websocket.scope["subprotocols"]:
        return problem_response(
            Kind.BAD_REQUEST, f"this controller speaks the subprotocol {PROTOCOL}: use an agentd that offers it"
        )
    return None


def _too_many(node_id: NodeId, ctx: Context) -> Response | None:
    wait = ctx.limits.streams.take(node_id, time.monotonic())
    if not wait:
        return None
    detail = f"node {node_id} opens too many streams: try again in {wait} s"
    return problem_response(Kind.TOO_MANY_REQUESTS, detail, headers={"retry-after": str(wait)})


def _come_back(ctx: Context) -> Response:
    wait = ctx.limits.opening.come_back()
    detail = f"more hosts than can be greeted at once have come: try again in {wait} s"
    return problem_response(Kind.UNAVAILABLE, detail, headers={"retry-after": str(wait)})


class _Session:
    """One accepted stream. It leaves its `place` when the host has its first frame."""

    def __init__(self, websocket: WebSocket, ctx: Context, node_id: NodeId, place: Place) -> None:
        self._websocket = websocket
        self._place = place
        self._context = ctx
        self._hub = ctx.hub
        self._node_id = node_id
        self._recording: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Greet, talk until either side ends it, close. Raises WebSocketDisconnect when the agent leaves early."""
        try:
            hello = await self._hello()
            await self._place.turn()
            if self._hub.is_behind(self._node_id, hello):
                await self._context.store.catch_up()
            self._hub.admit(self._node_id)
            bye = await self._record(hello.report)
            if bye is None:
                with self._hub.connected(self._node_id, hello) as connection:
                    _log.info("node %s connected, agentd %s", self._node_id, hello.report.agent_version)
                    del hello  # not for as long as the stream lives: there are thousands
                    await connection.begin(self._send)
                    self._place.leave()
                    bye = await self._talk(connection)
                _log.info("node %s disconnected%s", self._node_id, f": {bye.reason}" if bye is not None else "")
                if bye is not None:
                    await self._websocket.close(_CODES.get(bye.reason, 1000), bye.reason)
                return
        except RefusedError as error:
            bye = error.bye
        except _BadFrameError as error:
            bye = _protocol(error)
        except StoreError as error:
            _log.error("node %s knows more than was taken in here: %s", self._node_id, error)
            bye = _AWAY
        _log.warning("node %s may not stream: %s", self._node_id, bye.detail)
        await self._send(bye)
        await self._websocket.close(_CODES.get(bye.reason, 1000), bye.reason)

    async def _hello(self) -> Hello:
        try:
            async with asyncio.timeout(HELLO_WITHIN):
                frame = await self._receive()
        except TimeoutError as error:
            raise _BadFrameError(f"no hello within {HELLO_WITHIN:g} s") from error
        if not isinstance(frame, Hello):
            raise _BadFrameError(f"the first frame must be hello, not {frame.type}")
        return frame

    async def _talk(self, connection: Connection) -> Bye | None:
        """Both directions at once. Answers with the Bye that was sent, None when the agent left without one."""
        sender = asyncio.create_task(connection.run(self._send))
        reader = asyncio.create_task(self._read(connection))
        try:
            await asyncio.wait({sender, reader}, return_when=asyncio.FIRST_COMPLETED)
            if not sender.done():
                bye = reader.result()
                if bye is None:
                    return None
                connection.dismiss(bye)
                await asyncio.wait({sender}, timeout=_FAREWELL)
            return sender.result() if sender.done() else None
        except WebSocketDisconnect:
            return None
        finally:
            tasks = [task for task in (sender, reader, self._recording) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, connection: Connection) -> Bye | None:
        """Take the agent's frames until it leaves (None) or must be sent away."""
        while True:
            try:
                frame = await self._receive()
            except WebSocketDisconnect:
                return None
            except _BadFrameError as error:
                return _protocol(error)
            if isinstance(frame, Applied):
                self._applied(connection, frame)
            elif isinstance(frame, Denials | Answer | Serving | Paths):
                self._note(frame)
            elif isinstance(frame, Drift):
                await self._drifted(frame)
            elif isinstance(frame, Calls):
                await self._called(connection, frame)
            elif isinstance(frame, Report):
                bye = await self._record(frame.report)
                if bye is not None:
                    return bye
                self._hub.reported(self._node_id, frame.report)
            else:
                return _protocol(_BadFrameError("hello comes once, at the beginning"))

    def _note(self, frame: Denials | Answer | Serving | Paths) -> None:
        """What is kept in memory."""
        match frame:
            case Denials():
                self._context.denials.heard(self._node_id, frame.minute, frame.denials)
            case Answer():
                self._context.questions.answered(self._node_id, frame)
            case Serving():
                self._context.services.heard(self._node_id, frame.services)
            case Paths():
                self._context.paths.heard(self._node_id, frame.paths, frame.netcheck)

    async def _called(self, connection: Connection, frame: Calls) -> None:
        """Keep records beside what else the host says. A host that sends more before it has its answer waits here."""
        if self._recording is not None:
            await asyncio.wait({self._recording})
        self._recording = asyncio.create_task(self._keep(connection, frame))

    async def _keep(self, connection: Connection, frame: Calls) -> None:
        try:
            through = await self._context.calls.heard(self._node_id, frame.spool, frame.first, frame.records)
        except (StoreError, Refused) as error:  # no answer: the host keeps them and sends them again
            _log.error("records of calls of node %s could not be stored: %s", self._node_id, error)
        else:
            connection.recorded(Recorded(spool=frame.spool, through=through))

    async def _drifted(self, frame: Drift) -> None:
        try:
            await self._context.drifts.record(self._node_id, frame.what)
        except StoreError as error:
            _log.error("what changed on node %s could not be stored: %s", self._node_id, error)

    async def _record(self, report: HostReport) -> Bye | None:
        """Keep what the host says of itself; the Bye when it cannot be kept."""
        client = self._websocket.client
        # Unspecified: connected in a way that has no address, such as a Unix socket behind a proxy.
        address = client.host if client is not None else "::"
        try:
            await self._context.nodes.report(self._node_id, report, address)
        except Refused as error:
            reason: Final = "removed" if error.kind is Kind.NODE_REMOVED else "protocol"
            return Bye(reason=reason, detail=error.detail, retry=reason != "removed")
        except StoreError as error:
            _log.error("the report of node %s could not be stored: %s", self._node_id, error)
            return _AWAY
        return None

    async def _receive(self) -> AgentFrame:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"], message.get("reason"))
        text = message.get("text")
        if text is None:
            raise _BadFrameError("frames are JSON text, not binary")
        if len(text) > MAX_FRAME:
            raise _BadFrameError(f"a frame of {len(text)} characters is longer than {MAX_FRAME}")
        try:
            return agent_frame.validate_json(text)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in fault["loc"]) or "frame"
            raise _BadFrameError(f"the frame cannot be read: {where}: {fault['msg']}") from error

    async def _send(self, frame: ControllerFrame) -> None:
        if isinstance(frame, Snapshot):
            await self._send_map("stream.snapshot", frame, frame.netmap.revision)
        elif isinstance(frame, DeltaFrame):
            await self._send_map("stream.delta", frame, frame.delta.revision)
        else:
            await self._websocket.send_text(frame.model_dump_json())

    async def _send_map(self, name: str, frame: Snapshot | DeltaFrame, revision: Revision) -> None:
        with self._context.tracing.span(name) as span:
            text = frame.model_dump_json()
            span.note("wardmesh.node", self._node_id)
            span.note("wardmesh.revision", revision)
            span.note("wardmesh.characters", len(text))
            await self._websocket.send_text(text)

    def _applied(self, connection: Connection, frame: Applied) -> None:
        with self._context.tracing.span("stream.applied") as span:
            span.note("wardmesh.node", self._node_id)
            span.note("wardmesh.revision", frame.revision)
            span.note("wardmesh.outcome", "in force" if frame.error is None else "error")  # what error, the host wrote
            lag = self._hub.here(self._node_id).lag(self._hub.clock())
            span.note("wardmesh.lag_ms", round((lag or 0.0) * 1000))
            self._hub.applied(connection, frame)


def _protocol(error: _BadFrameError) -> Bye:
    return Bye(reason="protocol", detail=str(error))
