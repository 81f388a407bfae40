"""One request's life up to the point where it is passed on: who asks, is it well-formed, is it allowed, is it recorded.

A `ServiceApp` answers the connections of one service. Sockets are opened elsewhere, and what a grant means is the
policy's.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from controller.wire.mcp import Service

from .answers import JSON, denial, error_body
from .eras import (
    HEADER_MISMATCH,
    MODERN_VERSIONS,
    Accepted,
    Refusal,
    classify,
    client_info,
    repeated_routing,
    trace_context,
)
from .gateway import Gateway, judged
from .http.exchange import Begun, Exchange
from .http.head import BadRequestError
from .http.pool import HttpUpstream
from .jsonrpc import INVALID_REQUEST, BodyError, Message, parse
from .metadata import Metadata
from .mirrors import Mirrors, reader
from .passage import Passage
from .passing import Guard, request_headers
from .shortcut import Shortcuts
from .trail import Asked, Trail
from .types import (
    TRANSPORT_RESPONSE,
    TRANSPORT_STREAM,
    TRANSPORT_TERMINATE,
    Call,
    Caller,
    Code,
    Decision,
    Deny,
    Era,
    RequestId,
    Upstream,
    UpstreamRequest,
)

__all__ = ["ServiceApp"]

# Doing these twice changes nothing, so they may be sent again when a kept connection turns out to be dead.
_REPLAYABLE: Final = frozenset(
    {"tools/list", "prompts/list", "resources/list", "resources/templates/list", "server/discover", "ping"}
)
_MODERN: Final = frozenset(version.encode() for version in MODERN_VERSIONS)
_STREAMED_BODY: Final = 64 * 1024  # of a request of kind http: a larger one is passed on as it comes
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_NO_SESSION: Final = "Session not found"


class _RefusedError(Exception):
    """The request is answered with this refusal. `session`: because of the session that it named."""

    def __init__(self, refusal: Refusal, *, session: bool = False) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.session = session


class ServiceApp:
    """One service (`http.server.App`)."""

    def __init__(
        self, gateway: Gateway, service: Service, upstream: Upstream, target: bytes, mirrors: Mirrors | None = None
    ) -> None:
        """`target`: the upstream's path and query; for kind http, what paths are appended to. `mirrors`: what the
        upstream said of its tools under former rules.
        """
        self.service = service
        self.upstream = upstream
        self._gateway = gateway
        self._target = target
        self._guard = Guard(service)
        self._path = service.path.encode()
        self._metadata = Metadata(service, target, self._guard)
        self._trail = Trail(gateway.audit, service.name)
        self._mirrors = mirrors if mirrors is not None else Mirrors()
        self._shortcuts: Shortcuts | None = None
        if isinstance(upstream, HttpUpstream) and service.kind != "http":
            self._shortcuts = Shortcuts(gateway, service, upstream, self._trail, self._mirrors)

    async def admit(self, peer: str) -> bool:
        """An address that is nobody's gets no answer."""
        return await self._gateway.who(peer) is not None

    def begin(self, exchange: Exchange) -> Begun | None:
        """Answer one request without waiting, if it is like one that was answered before."""
        return self._shortcuts.begin(exchange) if self._shortcuts is not None else None

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request."""
        caller = await self._gateway.who(exchange.peer)
        if caller is None:
            exchange.abort()  # it was somebody's when it connected
            return
        asked = Asked(exchange, caller)
        try:
            self._check_meant_for_us(exchange)
            if self.service.kind == "http":
                await self._serve_http(asked)
            else:
                await self._serve_mcp(asked)
        except _RefusedError as refused:
            refusal = refused.refusal
            _reply(exchange, refusal)
            self._trail.refused(asked, refusal.status, refusal.message, error=refusal.code, session=refused.session)
        except BadRequestError as error:
            self._trail.refused(asked, error.status, str(error))
            raise

    # --- from a request to a call

    def _check_meant_for_us(self, exchange: Exchange) -> None:
        fields = exchange.head.fields
        if not self._guard.is_ours(fields.get(b"host")):
            raise BadRequestError(421, f"Host does not name {self.service.name}")
        origin = fields.get(b"origin")
        if origin is not None and not self._guard.is_welcome(origin):
            raise BadRequestError(403, "pages of this origin may not call")

    async def _serve_mcp(self, asked: Asked) -> None:
        head = asked.exchange.head
        if head.target != self._path and head.target.partition(b"?")[0] != self._path:
            await self._serve_metadata(asked)
        elif head.method == "POST":
            await self._serve_post(asked)
        elif head.method in {"GET", "DELETE"} and head.fields.get(b"mcp-protocol-version") not in _MODERN:
            await self._serve_stream_or_end(asked)
        else:
            asked.exchange.reply(405, [(b"allow", b"POST")])
            self._trail.refused(asked, 405, f"{head.method} is not served")

    async def _serve_post(self, asked: Asked) -> None:
        head = asked.exchange.head
        _check_content(head.fields)
        body = await asked.exchange.read_body(self.service.limits.body)
        try:
            message = parse(body, self.service.limits.depth)
        except BodyError as error:
            raise _RefusedError(Refusal(400, error.code, str(error), error.id)) from None
        accepted = classify(head.fields, head.repeated, message)
        if isinstance(accepted, Refusal):
            raise _RefusedError(accepted)
        call = self._call(accepted, head.fields, body)
        contradiction = self._mirrors.contradiction(asked.caller, call, head.fields, head.repeated)
        if contradiction is not None:
            raise _RefusedError(Refusal(400, HEADER_MISMATCH, contradiction, message.id))
        session = None
        if accepted.era == "legacy" and message.method != "initialize":
            session = self._session(asked, message.id)
        request = UpstreamRequest(
            method="POST",
            target=self._target,
            headers=self._passed(asked, session),
            body=body,
            caller=asked.caller,
            call=call,
            session=session,
            replayable=message.method in _REPLAYABLE,
        )
        await self._decide_and_pass(asked, request)

    def _call(self, accepted: Accepted, fields: Mapping[bytes, bytes], body: bytes) -> Call:
        message: Message = accepted.message
        arguments = message.params.get("arguments")
        return Call(
            service=self.service.name,
            era=accepted.era,
            method=message.method if message.kind != "response" else TRANSPORT_RESPONSE,
            name=accepted.name,
            arguments=arguments if isinstance(arguments, dict) else None,
            request_id=message.id if message.kind == "request" else None,
            body=body,
            params=message.params,
            version=accepted.version,
            trace=trace_context(message, fields),
            client_info=client_info(message),
        )

    async def _serve_stream_or_end(self, asked: Asked) -> None:
        """What legacy clients do besides posting: open the GET stream, end a session."""
        head = asked.exchange.head
        if await asked.exchange.read_body(0):
            raise BadRequestError(400, f"a {head.method} has no body")
        refusal = repeated_routing(head.repeated)
        if refusal is not None:
            raise _RefusedError(refusal)
        session = self._session(asked, None)
        headers = self._passed(asked, session)
        last_event = head.fields.get(b"last-event-id")
        if last_event is not None:
            headers.append((b"last-event-id", last_event))
        request = UpstreamRequest(
            method=head.method,
            target=self._target,
            headers=headers,
            body=b"",
            caller=asked.caller,
            call=self._bare_call("legacy", TRANSPORT_STREAM if head.method == "GET" else TRANSPORT_TERMINATE),
            session=session,
            last_event_id=last_event.decode("latin-1") if last_event is not None else None,
            replayable=head.method == "GET",
        )
        await self._decide_and_pass(asked, request)

    async def _serve_metadata(self, asked: Asked) -> None:
        """What an upstream that wants OAuth tokens itself says of them: plain HTTP, to whoever has any grant."""
        head = asked.exchange.head
        target = self._metadata.find(head.target) if head.method == "GET" else None
        if target is None:
            raise BadRequestError(404, f"the MCP endpoint is {self.service.path}")
        await asked.exchange.read_body(0)
        request = UpstreamRequest(
            method="GET",
            target=target,
            headers=request_headers(head.headers, asked.caller),
            body=b"",
            caller=asked.caller,
            call=self._bare_call("http", "GET", head.target.decode("latin-1")),
            replayable=True,
        )
        await self._decide_and_pass(asked, request)

    async def _serve_http(self, asked: Asked) -> None:
        """Any HTTP: the path is appended to the upstream's, the body passes as it comes."""
        exchange, head = asked.exchange, asked.exchange.head
        if self._target != b"/" and _climbs(head.target):
            raise BadRequestError(400, "the path leaves the service")
        declared = head.fields.get(b"content-length")
        length = int(declared) if declared is not None else None
        streams = not exchange.complete_body and (length is None or length > _STREAMED_BODY)
        request = UpstreamRequest(
            method=head.method,
            target=self._target.rstrip(b"/") + head.target,
            headers=request_headers(head.headers, asked.caller),
            body=b"" if streams else await exchange.read_body(max(length or 0, self.service.limits.body)),
            caller=asked.caller,
            call=self._bare_call("http", head.method, head.target.decode("latin-1")),
            replayable=head.method in {"GET", "HEAD", "OPTIONS"},
            content=exchange.body() if streams else None,
            length=length if streams else None,
        )
        await self._decide_and_pass(asked, request)

    def _bare_call(self, era: Era, method: str, name: str | None = None) -> Call:
        return Call(
            service=self.service.name,
            era=era,
            method=method,
            name=name,
            arguments=None,
            request_id=None,
            body=b"",
        )

    def _session(self, asked: Asked, request_id: RequestId | None) -> str | None:
        """The upstream's id of the session that the client names; None when it names none."""
        head = asked.exchange.head
        given = head.fields.get(b"mcp-session-id")
        if given is None:
            return None
        session = self._gateway.sessions.open(asked.caller, self.service.name, given)
        if session is None or b"mcp-session-id" in head.repeated:
            # not 403: whether the session exists for somebody else is nobody's business
            raise _RefusedError(Refusal(404, INVALID_REQUEST, _NO_SESSION, request_id), session=True)
        return session

    def _passed(self, asked: Asked, session: str | None) -> list[tuple[bytes, bytes]]:
        headers = request_headers(asked.exchange.head.headers, asked.caller)
        if session is not None:
            headers.append((b"mcp-session-id", session.encode("latin-1")))
        return headers

    # --- the call

    async def _decide_and_pass(self, asked: Asked, request: UpstreamRequest) -> None:
        gateway, call = self._gateway, request.call
        assert call is not None
        now = time.time()
        decision = self._decide(asked.caller, call, now)
        recorded = self._trail.decided(asked, call, decision, request.session, now)
        if isinstance(decision, Deny):
            self._deny(asked, call, decision)
            return
        if not recorded:
            full = "calls cannot be recorded at the moment, so none is made: try again later"
            self._deny(asked, call, Deny(Code.AUDIT_FULL, full))
            return
        if decision.rewrite is not None:
            replaced = {name for name, _ in decision.rewrite.headers}
            headers = [pair for pair in request.headers if pair[0] not in replaced]
            request = replace(request, body=decision.rewrite.body, headers=[*headers, *decision.rewrite.headers])
        elif self._shortcuts is not None:
            self._shortcuts.learn(asked, request, decision)
        passage = Passage(
            asked.exchange,
            asked.caller,
            call,
            policy=gateway.policy,
            sessions=gateway.sessions,
            patience=gateway.patience,
        )
        passage.listed = partial(self._mirrors.learn, reader(asked.caller, asked.exchange.head.fields))
        gateway.live.add(passage, call.service)
        try:
            await passage.run(self.upstream, request)
        finally:
            gateway.live.discard(passage, call.service)
            self._trail.ended(asked, passage, decision, request.session)
            if passage.challenge is not None:
                self._metadata.learn(passage.challenge)

    def _decide(self, caller: Caller, call: Call, now: float) -> Decision:
        gateway = self._gateway
        if gateway.stopping:
            return Deny(Code.STOPPING, "the gateway is stopping: try again in a moment")
        most = self.service.limits.streams
        if gateway.live.count(caller, self.service.name) >= most:
            return Deny(Code.TOO_MANY_STREAMS, f"{caller.name} has {most} requests under way: wait for one to end")
        return gateway.policy.decide(caller, judged(call), now)

    def _deny(self, asked: Asked, call: Call, deny: Deny) -> None:
        if deny.breach is not None:
            caller = asked.caller
            closed = self._gateway.live.revoke(
                deny.message, lambda running: running.caller == caller and running.call.service == call.service
            )
            self._trail.breached(asked, call, f"{deny.breach}, {closed} running calls ended")
        if call.era == "http":
            status = deny.code // 100 if deny.code in set(Code) else 403
            asked.exchange.reply(status, [_TEXT], f"{deny.message}\n".encode())
        else:
            _reply(asked.exchange, denial(deny, call.era, call.request_id))


def _reply(exchange: Exchange, refusal: Refusal) -> None:
    exchange.reply(refusal.status, [JSON], error_body(refusal.id, refusal.code, refusal.message, refusal.data))


def _check_content(fields: Mapping[bytes, bytes]) -> None:
    """A body that is not plain UTF-8 JSON would be read differently by somebody."""
    given = fields.get(b"content-type", b"")
    if given != b"application/json":
        kind, _, parameters = given.lower().partition(b";")
        charset = parameters.replace(b" ", b"").replace(b'"', b"")
        if kind.strip() != b"application/json" or charset not in {b"", b"charset=utf-8"}:
            raise BadRequestError(415, "the content type must be application/json, in UTF-8")
    if b"content-encoding" in fields:
        raise BadRequestError(415, "the body must not be compressed")


def _climbs(target: bytes) -> bool:
    path = target.partition(b"?")[0].lower().replace(b"%2e", b".").replace(b"%2f", b"/").replace(b"%5c", b"/")
    return any(part in {b".", b".."} for part in path.replace(b"\\", b"/").split(b"/"))
