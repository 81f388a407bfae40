"""`Upstream` over server processes: one for the service or one for each caller, never two of one kind at a time.

Started when first needed, started again with growing delay when they die, stopped when idle. Answers as a Streamable
HTTP server would, in either era.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from controller.wire.mcp import StdioUpstream

from ..eras import LEGACY_VERSIONS, MODERN_VERSIONS, UNSUPPORTED_VERSION
from ..types import (
    TRANSPORT_RESPONSE,
    TRANSPORT_STREAM,
    TRANSPORT_TERMINATE,
    Call,
    UpstreamError,
    UpstreamRequest,
    UpstreamResponse,
)
from .answer import Answer, empty, error_answer, json_answer, stream_answer
from .child import Child, ChildError
from .conversation import Conversation
from .parties import Listener, Session
from .translate import DISCOVERED_BY_GATEWAY, REMOVED, SUBSCRIPTION_KEY, discover_result

__all__ = ["StdioPool"]

log = logging.getLogger("agentd.gateway.stdio")

_FIRST_DELAY: Final = 0.5
_LONGEST_DELAY: Final = 60.0
_STABLE_SECONDS: Final = 60.0  # a process that lived so long is started again at once
_MOST_PROCESSES: Final = 64  # of one service, when each caller has its own
_MOST_SESSIONS: Final = 256  # of one process
_IDLE_SECONDS: Final = 900.0  # after which a caller's own process is stopped
_INVALID_REQUEST: Final = -32600
_METHOD_NOT_FOUND: Final = -32601


@dataclass(slots=True, eq=False)
class _Slot:
    """Where one process runs, or will again. `lock` is held while one starts or stops."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    conversation: Conversation | None = None
    watching: asyncio.Task[None] | None = None
    failures: int = 0
    not_before: float = 0.0
    why: str = ""
    used: float = 0.0


class StdioPool:
    """One service's processes (`types.Upstream`)."""

    def __init__(self, name: str, upstream: StdioUpstream, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._upstream = upstream
        self._clock = clock
        self._slots: dict[str, _Slot] = {}
        self._closed = False
        self._sweeping: asyncio.Task[None] | None = None

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send the request; returns when the answer's head is there. Raises UpstreamError."""
        call = request.call
        if call is None or call.era == "http":
            raise UpstreamError("a command on standard input and output speaks only MCP", reached=False)
        slot = self._slot(request, call)
        slot.used = self._clock()
        conversation = await self._conversation(slot, call)
        if call.era == "modern":
            return await self._modern(conversation, call)
        return await self._legacy(conversation, request, call)

    async def check(self) -> str | None:
        """Is the command there, and the shared process not one that ended and waits to be started again?"""
        shared = self._slots.get("")
        if shared is not None and shared.conversation is None and shared.not_before > self._clock():
            return f"the server's process {shared.why}"
        program = self._upstream.command[0]
        if "/" in program:
            there = os.access(Path(self._upstream.directory or ".") / program, os.X_OK)
        else:
            there = shutil.which(program, path=self._upstream.environment.get("PATH")) is not None
        return None if there else f"the command {program!r} is not a program that the gateway's user can run"

    async def close(self) -> None:
        """Stop every process."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeping
        await asyncio.gather(*(self._stop(slot) for slot in self._slots.values()))

    # --- processes

    def _slot(self, request: UpstreamRequest, call: Call) -> _Slot:
        # A server keeps the era that it was opened in. A shared one is opened in the legacy era, which nearly every
        # server knows, and spoken to in it for everybody; a caller's own, in the caller's.
        key = f"{request.caller.node_id} {call.era}" if self._upstream.per == "caller" else ""
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= _MOST_PROCESSES:
                raise UpstreamError(f"{_MOST_PROCESSES} callers have a process of their own: too many", reached=False)
            slot = self._slots[key] = _Slot()
            if self._sweeping is None and self._upstream.per == "caller":
                self._sweeping = asyncio.create_task(self._sweep())
        return slot

    async def _conversation(self, slot: _Slot, call: Call) -> Conversation:
        async with slot.lock:
            if self._closed:
                raise UpstreamError("the service is stopping", reached=False)
            if slot.conversation is not None and not slot.conversation.ended.is_set():
                return slot.conversation
            await self._reap(slot)
            wait = slot.not_before - self._clock()
            if wait > 0:
                raise UpstreamError(
                    f"the server's process {slot.why}; it is started again in {wait:.1f} s", reached=False
                )
            slot.conversation = await self._start(slot, call)
            return slot.conversation

    async def _start(self, slot: _Slot, call: Call) -> Conversation:
        private = self._upstream.per == "caller"
        started = self._clock()
        conversation: Conversation | None = None
        try:
            child = await Child.start(self._name, self._upstream)
            conversation = Conversation(child, private=private)
            asks = private and call.era == "legacy" and call.method == "initialize"
            declared = call.params.get("capabilities") if asks else None
            client = call.params.get("clientInfo") if asks else None
            await conversation.shake_hands(
                declared if isinstance(declared, dict) else {},
                client if isinstance(client, dict) else None,
                modern=private and call.era == "modern",
            )
        except (ChildError, asyncio.CancelledError) as error:
            if conversation is not None:
                await conversation.stop()
            if isinstance(error, asyncio.CancelledError):
                raise
            why = conversation.child.why() if conversation is not None else str(error)
            self._failed(slot, f"could not be started: {error} ({why})" if conversation else why)
            raise UpstreamError(f"the server's process {slot.why}", reached=False) from error
        log.info("started", extra={"service": self._name, "pid": conversation.child.pid})
        slot.watching = asyncio.create_task(self._watch(slot, conversation, started))
        return conversation

    async def _watch(self, slot: _Slot, conversation: Conversation, started: float) -> None:
        """When the process ends by itself, clear up and decide when the next may start."""
        await conversation.ended.wait()
        async with slot.lock:
            if slot.conversation is not conversation:
                return
            if self._clock() - started >= _STABLE_SECONDS:
                slot.failures = 0
            await conversation.stop()
            self._failed(slot, conversation.child.why())
            slot.conversation = None
            log.warning("ended", extra={"service": self._name, "pid": conversation.child.pid, "why": slot.why})

    def _failed(self, slot: _Slot, why: str) -> None:
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2**slot.failures)
        slot.failures = min(slot.failures + 1, 16)
        slot.not_before, slot.why = self._clock() + delay, why

    async def _reap(self, slot: _Slot) -> None:
        """What ended is gone before the next starts."""
        if slot.conversation is not None:
            conversation, slot.conversation = slot.conversation, None
            await conversation.stop()
            self._failed(slot, conversation.child.why())

    async def _stop(self, slot: _Slot) -> None:
        async with slot.lock:
            conversation, slot.conversation = slot.conversation, None
            if conversation is not None:
                await conversation.stop()
        if slot.watching is not None:
            await slot.watching

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_IDLE_SECONDS / 30)
            for key, slot in list(self._slots.items()):
                idle = self._clock() - slot.used > _IDLE_SECONDS and not slot.lock.locked()
                if idle and (slot.conversation is None or not slot.conversation.busy):
                    await self._stop(slot)
                    self._slots.pop(key, None)

    # --- a modern caller

    async def _modern(self, conversation: Conversation, call: Call) -> UpstreamResponse:
        if call.request_id is None:
            return empty(202)  # its only notification cancels, and so does leaving
        if call.method in REMOVED:
            return error_answer(404, call.request_id, _METHOD_NOT_FOUND, f"Method not found: {call.method}")
        if conversation.initialized is not None:
            if call.method == DISCOVERED_BY_GATEWAY:
                result = discover_result(conversation.initialized)
                return json_answer(200, orjson.dumps({"jsonrpc": "2.0", "id": call.request_id, "result": result}))
            if call.method == "subscriptions/listen":
                return _listen(conversation, call)
        return await self._pass_on(conversation, call, None)

    async def _pass_on(self, conversation: Conversation, call: Call, session: Session | None) -> Answer:
        assert call.request_id is not None
        pending = conversation.request(
            call.request_id, call.method, call.params, session=session, modern=call.era == "modern"
        )
        try:
            return await pending.head
        except asyncio.CancelledError:
            conversation.cancel(pending)
            raise

    # --- a legacy caller

    async def _legacy(self, conversation: Conversation, request: UpstreamRequest, call: Call) -> UpstreamResponse:
        if conversation.initialized is None:
            data = {"supported": list(MODERN_VERSIONS), "requested": call.params.get("protocolVersion", call.version)}
            text = f"this server speaks only {', '.join(MODERN_VERSIONS)}, without initialize"
            return error_answer(400, call.request_id, UNSUPPORTED_VERSION, text, data)
        if call.method == "initialize":
            return self._initialize(conversation, conversation.initialized, request, call)
        session = conversation.sessions.get(request.session or "")
        if session is None or session.node_id != request.caller.node_id:
            status, text = (400, "a session id is needed: begin with initialize")
            if request.session is not None:
                status, text = 404, "Session not found"
            return error_answer(status, call.request_id, _INVALID_REQUEST, text)
        return await self._in_session(conversation, session, call)

    def _initialize(
        self, conversation: Conversation, initialized: Mapping[str, Any], request: UpstreamRequest, call: Call
    ) -> UpstreamResponse:
        if len(conversation.sessions) >= _MOST_SESSIONS:
            silent = (one for one in conversation.sessions.values() if not one.streams)
            oldest = next(silent, None)
            if oldest is None:
                raise UpstreamError(f"{_MOST_SESSIONS} sessions are open: too many", reached=False)
            conversation.close_session(oldest)
        declared = call.params.get("capabilities")
        session = conversation.open_session(request.caller.node_id, declared if isinstance(declared, dict) else {})
        wanted = call.params.get("protocolVersion")
        # The revision that the caller asks for, although the server speaks the newest one of this era: what later ones
        # added is optional, and a client that is told of a revision that it does not know hangs up.
        version = wanted if wanted in LEGACY_VERSIONS else initialized.get("protocolVersion")
        result = {**initialized, "protocolVersion": version}
        body = orjson.dumps({"jsonrpc": "2.0", "id": call.request_id, "result": result})
        return json_answer(200, body, [(b"mcp-session-id", session.id.encode())])

    async def _in_session(self, conversation: Conversation, session: Session, call: Call) -> UpstreamResponse:
        if call.method == TRANSPORT_TERMINATE:
            conversation.close_session(session)
            return empty(200)
        if call.method == TRANSPORT_STREAM:
            return _stream(session)
        if call.method == TRANSPORT_RESPONSE:
            known = conversation.respond(orjson.loads(call.body), session)
            return empty(202) if known else error_answer(400, None, _INVALID_REQUEST, "nobody asked for this response")
        if call.request_id is None:
            conversation.notify(call.method, call.params, session)
            return empty(202)
        uri = call.params.get("uri")
        if call.method == "resources/subscribe" and isinstance(uri, str):
            session.subscribed.add(uri)
        local = call.method == "logging/setLevel" and not conversation.private
        if call.method == "resources/unsubscribe" and isinstance(uri, str):
            session.subscribed.discard(uri)
            local = conversation.wanted(uri)  # others still want to hear of it
        if local:
            return json_answer(200, orjson.dumps({"jsonrpc": "2.0", "id": call.request_id, "result": {}}))
        return await self._pass_on(conversation, call, session)


def _stream(session: Session) -> Answer:
    """The GET stream of a session."""

    def leave() -> None:
        if answer in session.streams:
            session.streams.remove(answer)

    answer = stream_answer(leave)
    session.streams.append(answer)
    return answer


def _listen(conversation: Conversation, call: Call) -> Answer:
    """`subscriptions/listen`, towards a server that knows only `resources/subscribe`."""
    assert call.request_id is not None
    asked = call.params.get("notifications")
    asked = asked if isinstance(asked, dict) else {}
    uris = [uri for uri in asked.get("resourceSubscriptions") or [] if isinstance(uri, str)]
    changes = [key for key in ("toolsListChanged", "promptsListChanged", "resourcesListChanged") if asked.get(key)]

    def leave() -> None:
        if listener in conversation.listeners:
            conversation.listeners.remove(listener)
            for uri in uris:
                conversation.unsubscribe(uri)

    answer = stream_answer(leave)
    listener = Listener(call.request_id, answer, frozenset(changes), frozenset(uris))
    honored: dict[str, Any] = dict.fromkeys(changes, True)
    if uris:
        honored["resourceSubscriptions"] = uris
    params = {"_meta": {SUBSCRIPTION_KEY: call.request_id}, "notifications": honored}
    acknowledged = {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params}
    answer.push_event(orjson.dumps(acknowledged))
    conversation.listeners.append(listener)
    for uri in uris:
        conversation.subscribe(uri)
    return answer
