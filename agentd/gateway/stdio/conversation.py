"""The conversation with one server process: whose each message is.

Requests get ids of our own, so that callers cannot collide or guess each other's; progress tokens too. The handshake
is the gateway's. A server's own requests go to a session that declared that it can answer them, or are refused.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Mapping
from typing import Any, Final

import orjson

from ..types import RequestId, UpstreamError
from .answer import Answer, json_answer, stream_answer
from .child import Child, ChildError
from .parties import Listener, Pending, Session
from .translate import (
    META_PREFIX,
    MODERN_VERSION,
    SUBSCRIPTION_KEY,
    legacy_params,
    modern_error,
    modern_result,
    status_of,
)

__all__ = ["Conversation"]

log = logging.getLogger("agentd.gateway.stdio")

_HANDSHAKE_SECONDS: Final = 60.0
_HEAD_SECONDS: Final = 1.0  # after which an answer begins as a stream, so that comments can keep it alive
_LAST_WORDS_SECONDS: Final = 1.0
_MOST_ASKED: Final = 1024  # requests of the server that nobody has answered
_LEGACY: Final = "2025-11-25"
_US: Final = {"name": "wardmesh-gateway", "version": "1"}
_METHOD_NOT_FOUND: Final = -32601
# What a client must have declared before a server may ask it (2025-11-25, client features).
_NEEDS: Final = {"sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots"}
_CHANGES: Final = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}


class Conversation:
    """Speaks with one child. `private`: it serves one caller, so what names no request may go to that caller."""

    def __init__(self, child: Child, *, private: bool) -> None:
        self.child = child
        self.private = private
        self.initialized: dict[str, Any] | None = None  # the handshake's result; None: the server is modern
        self.sessions: dict[str, Session] = {}
        self.listeners: list[Listener] = []
        self.ended = asyncio.Event()
        self._numbers = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._asked: dict[str, tuple[RequestId, Session]] = {}
        self._reading = asyncio.create_task(self._read())

    @property
    def busy(self) -> bool:
        """Somebody waits for something."""
        return bool(self._pending or self.listeners or any(session.streams for session in self.sessions.values()))

    # --- the handshake

    async def shake_hands(
        self, capabilities: Mapping[str, Any], client: Mapping[str, Any] | None, *, modern: bool
    ) -> None:
        """Settle the era, which a server keeps for as long as it runs. `modern`: ask for that one first.

        Raises ChildError when the server speaks neither.
        """
        handshake = {"protocolVersion": _LEGACY, "capabilities": capabilities, "clientInfo": client or _US}
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                if modern and await self._is_modern():
                    return
                answer = await self._ask("initialize", handshake)
                if isinstance(answer.get("result"), dict):
                    self.initialized = answer["result"]
                    self._notify("notifications/initialized", None)
                elif modern or not await self._is_modern():
                    raise ChildError(f"the server knows neither initialize nor {MODERN_VERSION}: {answer.get('error')}")
        except TimeoutError as error:
            raise ChildError(f"the server did not answer for {_HANDSHAKE_SECONDS:.0f} s") from error
        except UpstreamError as error:
            raise ChildError(str(error)) from error

    async def _is_modern(self) -> bool:
        meta = {META_PREFIX + "protocolVersion": MODERN_VERSION, META_PREFIX + "clientCapabilities": {}}
        result = (await self._ask("server/discover", {"_meta": meta})).get("result")
        return isinstance(result, dict) and MODERN_VERSION in (result.get("supportedVersions") or ())

    async def _ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        pending = self._send_request(None, method, params, session=None, modern=False)
        answer = await pending.head
        message: dict[str, Any] = orjson.loads(await answer.read())
        return message

    # --- towards the server

    def request(
        self, original: RequestId, method: str, params: Mapping[str, Any], *, session: Session | None, modern: bool
    ) -> Pending:
        """Pass a request on; its answer's head comes to `Pending.head`. Raises UpstreamError."""
        pending = self._send_request(original, method, params, session=session, modern=modern)
        asyncio.get_running_loop().call_later(_HEAD_SECONDS, self._begin, pending)
        return pending

    def _send_request(
        self,
        original: RequestId | None,
        method: str,
        params: Mapping[str, Any],
        *,
        session: Session | None,
        modern: bool,
    ) -> Pending:
        number = next(self._numbers)
        sent = legacy_params(params) if modern and self.initialized is not None else dict(params)
        token = _meta(sent).get("progressToken")
        if token is not None:
            sent["_meta"] = {**_meta(sent), "progressToken": number}
        head: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        pending = self._pending[number] = Pending(number, original, method, session, token, modern, head)
        try:
            self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": sent})
        except UpstreamError:
            del self._pending[number]
            raise
        return pending

    def notify(self, method: str, params: Mapping[str, Any], session: Session | None) -> None:
        """Pass on a notification of a legacy caller. One that names a request must name the caller's own."""
        if method == "notifications/initialized":
            return  # the handshake was ours
        if method == "notifications/cancelled":
            for pending in list(self._pending.values()):
                if pending.session is session and pending.original == params.get("requestId"):
                    self.cancel(pending)
            return
        if self.private:
            self._notify(method, params)

    def cancel(self, pending: Pending) -> None:
        """Nobody waits for it any more."""
        if self._pending.pop(pending.id, None) is None:
            return
        self._notify("notifications/cancelled", {"requestId": pending.id})
        self._fail(pending, UpstreamError("the request was cancelled", reached=True))

    def respond(self, message: Mapping[str, Any], session: Session) -> bool:
        """Pass on a caller's response to a request of the server. False: it was not asked."""
        key = message.get("id")
        asked = self._asked.get(key) if isinstance(key, str) else None
        if asked is None or asked[1] is not session:
            return False
        del self._asked[str(key)]
        self._send({**message, "id": asked[0]})
        return True

    def subscribe(self, uri: str) -> None:
        """Towards a legacy server, on behalf of a modern listener."""
        self._send_request(None, "resources/subscribe", {"uri": uri}, session=None, modern=False)

    def unsubscribe(self, uri: str) -> None:
        """When nobody wants to hear of `uri` any more."""
        if not self.wanted(uri) and not self.ended.is_set():
            self._send_request(None, "resources/unsubscribe", {"uri": uri}, session=None, modern=False)

    def wanted(self, uri: str) -> bool:
        """Somebody is subscribed to `uri`."""
        return any(uri in listener.uris for listener in self.listeners) or any(
            uri in session.subscribed for session in self.sessions.values()
        )

    def open_session(self, node_id: str, capabilities: Mapping[str, Any]) -> Session:
        """A legacy caller begins."""
        session = Session(secrets.token_urlsafe(24), node_id, capabilities)
        self.sessions[session.id] = session
        return session

    def close_session(self, session: Session) -> None:
        """It ends, with everything that it waits for."""
        self.sessions.pop(session.id, None)
        for pending in [one for one in self._pending.values() if one.session is session]:
            self.cancel(pending)
        for stream in session.streams:
            stream.finish()
        for uri in session.subscribed:
            self.unsubscribe(uri)

    def _notify(self, method: str, params: Mapping[str, Any] | None) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params:
            message["params"] = params
        try:
            self._send(message)
        except UpstreamError as error:
            log.debug("%s: %s was not sent: %s", self.child.name, method, error)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self.child.send(orjson.dumps(message))
        except ChildError as error:
            raise UpstreamError(str(error), reached=False) from error

    # --- from the server

    async def _read(self) -> None:
        try:
            while (line := await self.child.read()) is not None:
                try:
                    message = orjson.loads(line)
                except orjson.JSONDecodeError:
                    log.warning("%s wrote a line that is not JSON: %.200r", self.child.name, line)
                    continue
                if isinstance(message, dict):
                    self._receive(message)
        except (ChildError, UpstreamError) as error:  # it does not take what it must be told
            log.warning("%s: %s", self.child.name, error)
        finally:
            self._end()

    def _receive(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params")
        if not isinstance(method, str):
            number = message.get("id")
            pending = self._pending.pop(number, None) if isinstance(number, int) else None
            if pending is not None:
                self._answer(pending, message)
        elif "id" in message:
            self._asks(message, method)
        else:
            self._tells(message, method, params if isinstance(params, dict) else {})

    def _answer(self, pending: Pending, message: dict[str, Any]) -> None:
        message = {**message, "id": pending.original}
        error = message.get("error")
        if pending.modern and self.initialized is not None:
            if isinstance(error, dict):
                message["error"] = error = modern_error(error)
            elif isinstance(message.get("result"), dict):
                message["result"] = modern_result(pending.method, message["result"])
        elif pending.modern and isinstance(message.get("result"), dict):
            message["result"] = _resubscribed(message["result"], pending)
        body = orjson.dumps(message)
        if pending.answer is not None:
            pending.answer.push_event(body)
            pending.answer.finish()
        elif not pending.head.done():
            status = status_of(error) if pending.modern and isinstance(error, dict) else 200
            pending.head.set_result(json_answer(status, body))

    def _tells(self, message: dict[str, Any], method: str, params: dict[str, Any]) -> None:
        """A notification. What belongs to a request goes with it; the rest to whoever asked to hear such things."""
        if method == "notifications/progress":
            number = params.get("progressToken")
            pending = self._pending.get(number) if isinstance(number, int) else None
            if pending is not None and pending.token is not None:
                message["params"] = {**params, "progressToken": pending.token}
                self._push(pending, message)
        elif method in _CHANGES or method == "notifications/resources/updated":
            self._tell_of_change(message, method, params)
        elif SUBSCRIPTION_KEY in _meta(params):
            self._push_to_listener(message, params)
        elif self.private:
            self._push_anywhere(message)
        # else: in a shared process it could be about another caller's call

    def _tell_of_change(self, message: dict[str, Any], method: str, params: dict[str, Any]) -> None:
        if self.initialized is None:
            self._push_to_listener(message, params)
            return
        uri = params.get("uri")
        for session in self.sessions.values():
            if session.streams and (method in _CHANGES or uri in session.subscribed):
                session.streams[-1].push_event(orjson.dumps(message))
        for listener in self.listeners:
            if _CHANGES.get(method) in listener.changes or (method not in _CHANGES and uri in listener.uris):
                meta = {**_meta(params), SUBSCRIPTION_KEY: listener.request_id}
                listener.answer.push_event(orjson.dumps({**message, "params": {**params, "_meta": meta}}))

    def _push_to_listener(self, message: dict[str, Any], params: dict[str, Any]) -> None:
        """A modern server names the subscription by our id."""
        number = _meta(params).get(SUBSCRIPTION_KEY)
        pending = self._pending.get(number) if isinstance(number, int) else None
        if pending is not None:
            self._push(pending, {**message, "params": _resubscribed(params, pending)})

    def _push_anywhere(self, message: dict[str, Any]) -> None:
        newest = next((one for one in reversed(self._pending.values()) if one.original is not None), None)
        if newest is not None:
            # A modern caller hears logs only when it asked to, which a legacy server cannot be told.
            if not (newest.modern and self.initialized is not None):
                self._push(newest, message)
            return
        stream = next((session.streams[-1] for session in self.sessions.values() if session.streams), None)
        if stream is not None:
            stream.push_event(orjson.dumps(message))

    def _asks(self, message: dict[str, Any], method: str) -> None:
        """A request of the server: `ping` is for us, the rest for a session that declared that it can."""
        need, original = _NEEDS.get(method), message["id"]
        if method == "ping":
            self._send({"jsonrpc": "2.0", "id": original, "result": {}})
            return
        able = [one for one in self.sessions.values() if need in one.capabilities] if self.private and need else []
        for pending in reversed(self._pending.values()):
            if pending.session in able and pending.session is not None:
                self._push(pending, self._renamed(message, pending.session))
                return
        for session in able:
            if session.streams:
                session.streams[-1].push_event(orjson.dumps(self._renamed(message, session)))
                return
        error = {"code": _METHOD_NOT_FOUND, "message": "no caller is there that declared that it can answer this"}
        self._send({"jsonrpc": "2.0", "id": original, "error": error})

    def _renamed(self, message: dict[str, Any], session: Session) -> dict[str, Any]:
        if len(self._asked) >= _MOST_ASKED:
            self._asked.pop(next(iter(self._asked)))
        key = f"gw-{secrets.token_hex(8)}"
        self._asked[key] = (message["id"], session)
        return {**message, "id": key}

    # --- answers

    def _begin(self, pending: Pending) -> None:
        """Begin a stream, if nothing has been answered."""
        if pending.answer is None and not pending.head.done() and pending.id in self._pending:
            pending.answer = stream_answer(lambda: self.cancel(pending))
            pending.head.set_result(pending.answer)

    def _push(self, pending: Pending, message: Mapping[str, Any]) -> None:
        self._begin(pending)
        if pending.answer is not None:
            pending.answer.push_event(orjson.dumps(message))

    def _fail(self, pending: Pending, failure: UpstreamError) -> None:
        if pending.answer is not None:
            pending.answer.fail(failure)
        elif not pending.head.done():
            pending.head.set_exception(failure)
            pending.head.exception()  # whoever asked may be gone

    def _end(self) -> None:
        """The process is gone or unusable: nobody must wait for it."""
        self.ended.set()
        for pending in list(self._pending.values()):
            self._fail(pending, UpstreamError("the server's process ended before it answered", reached=True))
        self._pending.clear()
        for session in self.sessions.values():
            for stream in session.streams:
                stream.finish()
        self.sessions.clear()
        for listener in self.listeners:
            listener.answer.finish()
        self.listeners.clear()

    async def stop(self) -> None:
        """End the process and the conversation."""
        await self.child.stop()
        # Something that left the process group may hold the pipe open for ever.
        await asyncio.wait({self._reading}, timeout=_LAST_WORDS_SECONDS)
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading


def _meta(holder: Mapping[str, Any]) -> dict[str, Any]:
    meta = holder.get("_meta")
    return meta if isinstance(meta, dict) else {}


def _resubscribed(holder: Mapping[str, Any], pending: Pending) -> dict[str, Any]:
    """With the subscription named by the caller's id instead of ours."""
    meta = _meta(holder)
    if meta.get(SUBSCRIPTION_KEY) != pending.id:
        return dict(holder)
    return {**holder, "_meta": {**meta, SUBSCRIPTION_KEY: pending.original}}
