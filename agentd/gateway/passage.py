"""One exchange that was allowed, from the upstream's answer to the caller: held, streamed, cancelled, revoked.

Bytes of a stream go on as they come and are read afterwards; only a final result waits. An upstream that fails is told
as an error, never as an empty success. What was decided, and why, is not known here.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import orjson

from . import eras
from .answers import JSON, error_body, status_of
from .eras import Refusal
from .http.client import Response
from .http.exchange import Exchange
from .http.head import AnswerHead, find, render_head
from .passing import answer_headers
from .sessions import Sessions
from .sse import event
from .types import (
    LIST_METHODS,
    TRANSPORT_STREAM,
    Call,
    Caller,
    Code,
    Policy,
    Upstream,
    UpstreamError,
    UpstreamRequest,
    UpstreamResponse,
)
from .watch import LARGEST_HELD, StreamWatch, check_answer, error_code, filter_answer

__all__ = ["Passage", "Patience", "plain_answer"]

log = logging.getLogger("agentd.gateway")

_COMMENT: Final = b":\r\n\r\n"
_NO_BUFFERING: Final = (b"x-accel-buffering", b"no")


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds: `silence` before a comment is sent on a stream; `orphan`: how long nothing may come for a
    legacy request whose client is gone.
    """

    silence: float = 15.0
    orphan: float = 600.0


class Passage:
    """Passes one request on and its answer back (`live.Running`)."""

    # Defaults are the class's: one is made for every call, and few are changed.
    status = 0
    error: int | None = None  # the JSON-RPC error code of the answer
    problem: str | None = None  # what went wrong on the way
    session: str | None = None  # the id that the upstream gave
    revoked: str | None = None
    challenge: bytes | None = None  # what the upstream wants to be shown first
    listed: Callable[[Mapping[str, Any]], None] | None = None  # who wants to know of lists of tools, unfiltered
    _watch: StreamWatch | None = None  # set while a stream of events runs

    def __init__(
        self, exchange: Exchange, caller: Caller, call: Call, *, policy: Policy, sessions: Sessions, patience: Patience
    ) -> None:
        self._exchange = exchange
        self.caller = caller
        self.call = call
        self._policy = policy
        self._sessions = sessions
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._response: UpstreamResponse | None = None
        self._last = self._loop.time()  # when something was last sent or came
        # A legacy client that loses its connection has not cancelled (2025-11-25, basic/transports). Until the upstream
        # shows that what it says can be had by resuming, it is read to its end, in case it ends with its reader.
        exchange.ends_with_client = call.era != "legacy" or call.method == TRANSPORT_STREAM

    # --- as the registry of running exchanges sees it

    def keep_alive(self, now: float) -> None:
        """Send a comment on a stream that was silent; give up on an orphan that was."""
        if self._exchange.gone:
            if now - self._last > self._patience.orphan:
                self.problem = "nothing came for a request whose client is gone"
                self._exchange.cancel()
        elif self._watch is not None and self._watch.between and now - self._last >= self._patience.silence:
            self._last = now
            self._exchange.write(_COMMENT)

    def revoke(self, why: str) -> None:
        """End now: the answer's reader is told, or if nothing can be told any more the connection breaks."""
        self.revoked = why
        if self._response is not None:
            self._response.close()
        else:
            self._exchange.cancel()

    # --- the passage

    async def run(self, upstream: Upstream, request: UpstreamRequest) -> None:
        """Pass the request on and the answer back. Cancelled, it cancels upstream."""
        try:
            response = await upstream.open(request)
        except UpstreamError as failure:
            self.fail(failure)
            return
        await self.follow(response)

    def fail(self, failure: UpstreamError) -> None:
        """There is no answer."""
        self._fail(Code.UPSTREAM_BROKEN if failure.reached else Code.UPSTREAM_UNREACHABLE, failure)

    async def follow(self, response: UpstreamResponse) -> None:
        """Pass the answer back. Cancelled, it cancels upstream."""
        self._response = response
        self.status = response.status
        try:
            await self._answer(response)
        except UpstreamError as failure:
            self._break_off(failure)
        finally:
            self._watch = None
            response.close()

    async def _answer(self, response: UpstreamResponse) -> None:
        headers = self._headers(response)
        kind = (find(response.headers, b"content-type") or b"").partition(b";")[0].strip().lower()
        asked = self.call.era != "http" and self.call.request_id is not None
        if self.call.era != "http" and kind == b"text/event-stream" and response.status == 200:
            await self._stream(response, headers)
        elif asked and kind == b"application/json":
            await self._hold(response, headers)
        elif asked and response.status < 400:
            raise UpstreamError(_not_an_answer(response, kind), reached=True)
        elif asked and response.status == 400 and self.call.era == "modern":
            self._tell(eras.unsupported_version(self.call.version or "", self.call.request_id, eras.LEGACY_VERSIONS))
        else:
            await self._copy(response, headers)

    def _headers(self, response: UpstreamResponse) -> list[tuple[bytes, bytes]]:
        headers = answer_headers(response.headers)
        if response.status in {401, 403}:
            self.challenge = find(response.headers, b"www-authenticate")
        given = find(response.headers, b"mcp-session-id") if self.call.era == "legacy" else None
        if given is not None:
            sealed = self._sessions.seal(self.caller, self.call.service, given)
            if sealed is None:
                raise UpstreamError("the server gave a session id that the protocol does not allow", reached=True)
            self.session = given.decode("latin-1")
            headers.append((b"mcp-session-id", sealed))
        return headers

    async def _hold(self, response: UpstreamResponse, headers: list[tuple[bytes, bytes]]) -> None:
        """A JSON answer is the final result: it is read before it is passed on."""
        parts: list[bytes] = []
        size = 0
        while data := await response.read():
            parts.append(data)
            size += len(data)
            if size > LARGEST_HELD:
                if self.call.method in LIST_METHODS:
                    raise UpstreamError(f"the server's list is larger than {LARGEST_HELD} bytes", reached=True)
                await self._copy(response, headers, b"".join(parts))
                return
        body = b"".join(parts)
        if response.status >= 400:
            self._pass_error(response.status, headers, body)
            return
        self.error = error_code(check_answer(body, self.call.request_id))
        if self.call.method in LIST_METHODS:
            body = filter_answer(body, self._filtered, self.call.method)
        self._exchange.reply(response.status, headers, body)

    def _pass_error(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """An error that the upstream stated. Where it only says that eras do not meet, say it as the protocol does."""
        code = _stated_code(body)
        self.error = code
        call = self.call
        if call.era == "modern" and eras.upstream_is_legacy(status, code):
            self._tell(eras.unsupported_version(call.version or "", call.request_id, eras.LEGACY_VERSIONS))
        elif _asks_to_initialize(call) and eras.upstream_is_modern_only(status, code) and b'"supported"' not in body:
            requested = str(call.params.get("protocolVersion", ""))[:64]
            refusal = eras.unsupported_version(requested, call.request_id, eras.MODERN_VERSIONS)
            text = f"this server speaks only {', '.join(eras.MODERN_VERSIONS)}, without initialize"
            self._tell(replace(refusal, message=text))
        else:
            self._exchange.reply(status, headers, body)

    async def _stream(self, response: UpstreamResponse, headers: list[tuple[bytes, bytes]]) -> None:
        """Events, byte by byte as they come."""
        exchange = self._exchange
        watch = self._watch = StreamWatch(self.call, self._filtered)
        if find(headers, b"x-accel-buffering") is None:
            headers.append(_NO_BUFFERING)
        exchange.start(response.status, headers, None)
        while data := await response.read():
            exchange.write(watch.pass_on(data))
            self._last = self._loop.time()
            if watch.resumable:
                # From now on a lost client is a lost reader to the upstream too: it keeps what is said for the one who
                # resumes, instead of saying it to nobody.
                exchange.ends_with_client = True
                if exchange.gone:
                    return
            await exchange.drain()
        self.error = watch.error
        if not watch.answered and self.call.request_id is not None and not self._may_resume(watch):
            raise UpstreamError("the server ended the stream without an answer", reached=True)
        exchange.end()

    async def _copy(self, response: UpstreamResponse, headers: list[tuple[bytes, bytes]], before: bytes = b"") -> None:
        """Whatever it is, as it comes."""
        length = find(response.headers, b"content-length")
        self._exchange.start(response.status, headers, int(length) if length is not None else None)
        self._exchange.write(before)
        while data := await response.read():
            self._exchange.write(data)
            self._last = self._loop.time()
            await self._exchange.drain()
        self._exchange.end()

    def _filtered(self, method: str, result: Mapping[str, Any]) -> Mapping[str, Any] | None:
        seen = self._policy.filter(self.caller, self.call.service, method, result)
        if method == "tools/list" and self.listed is not None:
            self.listed(result)
        return seen

    # --- what went wrong

    def _may_resume(self, watch: StreamWatch) -> bool:
        """Legacy servers may end a stream on purpose and answer when the client comes back with its last event id."""
        return self.call.era == "legacy" and watch.resumable

    def _break_off(self, failure: UpstreamError) -> None:
        """The answer cannot be completed."""
        watch, exchange = self._watch, self._exchange
        code = Code.DENIED if self.revoked is not None else Code.UPSTREAM_BROKEN
        if not exchange.started:
            self._fail(code, failure)
            return
        self.problem = self.revoked or str(failure)
        if watch is not None and watch.between and not watch.answered and not self._may_resume(watch):
            self.error = code
            if self.call.request_id is not None:
                exchange.write(event(error_body(self.call.request_id, code, self.problem)))
            exchange.end()
        else:
            exchange.abort()  # part of something has been sent: it must not look whole

    def _fail(self, code: int, failure: UpstreamError) -> None:
        self.problem = self.revoked or str(failure)
        status = status_of(code, self.call.era)
        if self.call.request_id is None or self.call.era == "http":
            status = 403 if code == Code.DENIED else 502
        self._tell(Refusal(status, code, self.problem, self.call.request_id))

    def _tell(self, refusal: Refusal) -> None:
        self.status = refusal.status
        self.error = refusal.code
        if self.call.era == "http":
            body = f"{refusal.message}\n".encode()
            self._exchange.reply(refusal.status, [(b"content-type", b"text/plain; charset=utf-8")], body)
        else:
            body = error_body(refusal.id, refusal.code, refusal.message, refusal.data)
            self._exchange.reply(refusal.status, [JSON], body)


def plain_answer(response: Response) -> tuple[bytes, bytes] | None:
    """The head, up to its length, and the body of an answer that passes as it is once it was looked at.

    None: it is another, or not there whole; `Passage.follow` is to pass it on.
    """
    head = _plain_head(response.known) if response.known is not None else None
    body = response.piece()
    return (head, body) if head is not None and body is not None else None


@lru_cache(maxsize=1024)
def _plain_head(head: AnswerHead) -> bytes | None:
    kind = (find(head.headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    if head.status != 200 or kind != b"application/json" or find(head.headers, b"mcp-session-id") is not None:
        return None
    return render_head(head.status, answer_headers(head.headers)).removesuffix(b"\r\n")


def _asks_to_initialize(call: Call) -> bool:
    """A legacy client begins. (In a modern request, `initialize` is just a method that does not exist.)"""
    return call.era == "legacy" and call.method == "initialize"


def _stated_code(body: bytes) -> int | None:
    try:
        return error_code(orjson.loads(body))
    except orjson.JSONDecodeError:
        return None


def _not_an_answer(response: UpstreamResponse, kind: bytes) -> str:
    if 300 <= response.status < 400:
        where = (find(response.headers, b"location") or b"?").decode("latin-1")[:256]
        return f"the server redirects to {where}: name that URL as the upstream"
    shown = kind.decode("latin-1")[:64] or "no content type"
    return f"the server answered {response.status} with {shown}, which is no answer in MCP"
