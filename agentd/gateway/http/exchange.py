"""One request and its answer on a connection: body in, head and body out, with back-pressure both ways.

Knows framing (RFC 9112 sections 6 and 7); nothing of what is said.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from ..types import Headers
from .head import BadRequestError, RequestHead, render_head

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Begun", "Exchange"]

_LAST_CHUNK = b"0\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Begun(Protocol):
    """An exchange that was begun outside of the connection's task, and has not ended."""

    def cancel(self) -> None:
        """End it: nobody waits for it any more."""
        ...

    async def rest(self) -> None:
        """Serve what is left of it, which must wait."""
        ...


class Exchange:
    """A request being answered. Writing to a client that is gone does nothing; `gone` tells.

    `ends_with_client`: serving it is cancelled when the client goes; set it to False for what must go on.
    `keep_alive`: another request may follow on the connection.
    """

    # Defaults are the class's: one is made for every call, and few are changed.
    complete_head = False
    complete_body = False
    started = False  # the answer's head was written
    ended = False  # the answer is whole
    gone = False
    keep_alive = True
    ends_with_client = True
    bytes_out = 0
    _buffered = 0
    _chunked = False
    _paused = False  # the client is held back
    _whole = False  # the body is wanted whole, up to a limit
    _fault: BadRequestError | None = None
    _waiter: asyncio.Future[None] | None = None

    def __init__(self, connection: "Connection", head: RequestHead, body: bytes | None = None) -> None:
        """`body`: all of it, if it is there already."""
        self._connection = connection
        self.head = head
        self._body = [body] if body is not None else []
        if body is not None:
            self._buffered = len(body)
            self.complete_head = self.complete_body = True

    @property
    def peer(self) -> str:
        """The address that the client has."""
        return self._connection.peer

    @property
    def local(self) -> tuple[str, int]:
        """The address and port that the client connected to."""
        return self._connection.local

    # --- the request's body

    async def read_body(self, limit: int) -> bytes:
        """The whole body. Raises BadRequestError (413 above `limit` bytes)."""
        declared = self.head.fields.get(b"content-length")
        if declared is not None and int(declared) > limit:
            raise BadRequestError(413, f"the body is larger than {limit} bytes")
        if self.complete_body and len(self._body) == 1 and self._buffered <= limit:
            return self._body.pop()
        self._whole = True
        self._let_come()
        self._invite()
        deadline = asyncio.get_running_loop().time() + self._connection.limits.body_seconds
        while not self.complete_body and self._buffered <= limit:
            await self._more(deadline)
        if self._buffered > limit:
            raise BadRequestError(413, f"the body is larger than {limit} bytes")
        body = b"".join(self._body)
        self._body.clear()
        return body

    def body(self) -> AsyncIterator[bytes]:
        """The body as it arrives; the client is held back while it is not taken. Raises BadRequestError."""
        self._invite()
        return _Pieces(self)

    async def next_piece(self) -> bytes | None:
        """What arrived next of the body; None at its end."""
        while not self._body:
            self._let_come()
            if self.complete_body:
                return None
            await self._more(math.inf)
        data, self._body, self._buffered = b"".join(self._body), [], 0
        return data

    def _let_come(self) -> None:
        if self._paused:
            self._paused = False
            if not self.gone:
                self._connection.transport.resume_reading()
                self._connection.deadline = asyncio.get_running_loop().time() + self._connection.limits.body_pause

    def _invite(self) -> None:
        if not self.complete_body and not self.started and b"expect" in self.head.fields:
            self._connection.transport.write(_CONTINUE)

    async def _more(self, deadline: float) -> None:
        self._check()
        loop = asyncio.get_running_loop()
        if loop.time() > deadline:
            raise BadRequestError(408, "the request took too long to arrive")
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        self._check()

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault

    # --- events of the connection

    def whole_body(self) -> bytes | None:
        """The body, if it is all there."""
        if len(self._body) > 1 and self.complete_body:
            self._body = [b"".join(self._body)]
        return self._body[0] if self.complete_body and self._body else None

    def take_body(self) -> None:
        """It was passed on."""
        self._body.clear()

    def body_arrived(self, data: bytes) -> bool:
        """Returns whether the client is held back now."""
        self._body.append(data)
        self._buffered += len(data)
        if self._buffered > self._connection.limits.buffered and not self._whole and not self._paused:
            self._paused = True
            self._connection.transport.pause_reading()
        self._wake()
        return self._paused

    def body_ended(self) -> None:
        self.complete_body = True
        self._wake()

    def body_failed(self, fault: BadRequestError) -> None:
        self._fault = fault
        self._wake()

    def client_gone(self) -> None:
        self.gone = True
        if not self.complete_body:
            self.body_failed(BadRequestError(400, "the client is gone"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the answer

    def reply(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """The whole answer at once."""
        if self.gone:
            self.ended = True
            return
        self.started = self.ended = True
        pairs = [*headers]
        if status not in {204, 304}:
            pairs.append((b"content-length", b"%d" % len(body)))
        head = self._render(status, pairs)
        if self.head.method == "HEAD":
            body = b""
        self.bytes_out += len(body)
        self._connection.transport.write(head + body)

    def reply_behind(self, head: bytes, body: bytes) -> None:
        """The whole answer to a POST of HTTP/1.1, behind a head that lacks but its length and its end."""
        self.ended = True
        if self.gone:
            return
        self.started = True
        self.bytes_out = len(body)
        end = b"" if self.keep_alive else b"connection: close\r\n"
        self._connection.transport.write(b"%bcontent-length: %d\r\n%b\r\n%b" % (head, len(body), end, body))

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        """The answer's head. `length` None: its end will be marked, or for HTTP/1.0 told by closing."""
        self.started = True
        if self.gone:
            return
        pairs = [*headers]
        bodiless = self.head.method == "HEAD" or status in {204, 304}
        if length is not None:
            if status != 204:
                pairs.append((b"content-length", b"%d" % length))
        elif self.head.version == "1.1" and not bodiless:
            self._chunked = True
            pairs.append((b"transfer-encoding", b"chunked"))
        elif not bodiless:
            self.keep_alive = False
        self._connection.transport.write(self._render(status, pairs))

    def write(self, data: bytes) -> None:
        """Some of the answer's body, at once."""
        if self.gone or not data:
            return
        self.bytes_out += len(data)
        if self._chunked:
            self._connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._connection.transport.write(data)

    async def drain(self) -> None:
        """Wait while the client does not take what was written; a client that is gone is never waited for."""
        if not self.gone:
            await self._connection.drain()

    def end(self) -> None:
        """The answer is whole."""
        self.ended = True
        if self._chunked and not self.gone:
            self._connection.transport.write(_LAST_CHUNK)

    def abort(self) -> None:
        """Break the connection, so that what was written cannot be taken for a whole answer."""
        if not self.gone:
            self._connection.transport.abort()

    def has_ended(self) -> None:
        """It was begun without the connection's task, and is over."""
        self._connection.has_ended(self)

    def has_to_wait(self) -> None:
        """It was begun without the connection's task, which is to serve the rest."""
        self._connection.has_to_wait()

    def cancel(self) -> None:
        """End the exchange from outside, also one that goes on without its client."""
        self.ends_with_client = True
        self._connection.abort()

    def _render(self, status: int, pairs: list[tuple[bytes, bytes]]) -> bytes:
        if not self.complete_body:
            self.keep_alive = False
        if not self.keep_alive:
            pairs.append((b"connection", b"close"))
        elif self.head.version == "1.0":
            pairs.append((b"connection", b"keep-alive"))
        return render_head(status, pairs)


class _Pieces:
    """A body as it arrives. (An asynchronous generator cannot be compiled.)"""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self._exchange.next_piece()
        if data is None:
            raise StopAsyncIteration
        return data
