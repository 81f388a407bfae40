"""The client's side: one connection to an upstream, and the answer that arrives on it.

Knows framing; which connection to use and when to try again is the pool's.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

import httptools

from ..types import UpstreamError
from .head import AnswerHead
from .heads import Known, KnownAnswers

__all__ = ["Heard", "Response", "UpstreamConnection"]

_HEADER_BYTES: Final = 64 * 1024
_HELD: Final = 256 * 1024  # bytes of an answer that wait to be read before the upstream is held back
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Response:
    """An upstream's answer (`UpstreamResponse`)."""

    known: AnswerHead | None = None  # the head, if it came before
    complete = False  # everything has arrived, though it may not have been read
    _held = 0
    _error: UpstreamError | None = None
    _waiter: asyncio.Future[None] | None = None

    def __init__(self, connection: "UpstreamConnection") -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._connection: UpstreamConnection | None = connection
        self._chunks: list[bytes] = []

    def came_whole(self, head: AnswerHead, body: bytes) -> None:
        """The answer is there, behind a head that is known."""
        self.known, self.status, self.headers = head, head.status, head.headers
        self._chunks.append(body)
        self.complete = True
        self._connection = None

    def piece(self) -> bytes | None:
        """The whole body; None unless it is there in one piece."""
        return self._chunks[0] if self.complete and len(self._chunks) == 1 else None

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Raises UpstreamError."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._held = 0
        if self._connection is not None:
            self._connection.let_come()
        return data

    def close(self) -> None:
        """Cancel what has not arrived."""
        connection, self._connection = self._connection, None
        if connection is not None and not self.complete:
            connection.abort()
            self.fail(UpstreamError("the answer was not wanted any more", reached=True))

    def arrived(self, data: bytes) -> None:
        self._chunks.append(data)
        self._held += len(data)
        if self._held > _HELD and self._connection is not None:
            self._connection.hold_back()
        self._wake()

    def ended(self) -> None:
        self.complete = True
        self._connection = None
        self._wake()

    def fail(self, error: UpstreamError) -> None:
        if not self.complete and self._error is None:
            self._error = error
            self._connection = None
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


# Told once of each request: the answer, when its head is there, or why there is none.
Heard = Callable[[Response | UpstreamError], None]


class UpstreamConnection(asyncio.Protocol):
    """One connection, one request at a time. `released` is called when it may take the next one.

    `known`: the heads of answers that came before, on any connection to the same upstream.
    """

    __slots__ = (
        "_drained",
        "_fresh",
        "_head_came",
        "_header_bytes",
        "_heard",
        "_interim",
        "_is_head",
        "_keep",
        "_known",
        "_last",
        "_loop",
        "_parser",
        "_paused",
        "_pump",
        "_released",
        "_response",
        "_unfinished",
        "_until_close",
        "closed",
        "idle_since",
        "transport",
        "used",
    )

    def __init__(self, released: Callable[["UpstreamConnection", bool], None], known: KnownAnswers) -> None:
        self._released = released
        self._known = known
        self._last: Known[AnswerHead] | None = None  # of an answer on this connection: the next is most often like it
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._heard: Heard | None = None  # who is to be told of the answer
        self._head_came = False
        self._fresh = False  # nothing of the answer has come
        self._header_bytes = 0  # of headers that have ended
        self._unfinished = 0  # bytes that came before the end of the head
        self._interim = False
        self._is_head = False
        self._keep = False
        self._until_close = False
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport
        self.closed = False
        self.used = 0
        self.idle_since = 0.0

    async def ask(
        self,
        head: bytes,
        body: bytes,
        *,
        is_head: bool = False,
        content: AsyncIterator[bytes] | None = None,
        chunked: bool = False,
    ) -> Response:
        """Send one request; returns when the answer's head is there. Raises UpstreamError; cancelling it cancels."""
        if self.closed:
            raise UpstreamError("the upstream closed the connection", reached=False)
        head_came: asyncio.Future[Response] = self._loop.create_future()

        def heard(found: Response | UpstreamError) -> None:
            if isinstance(found, UpstreamError):
                if not head_came.done():
                    head_came.set_exception(found)
            elif head_came.done():
                found.close()  # it was cancelled
            else:
                head_came.set_result(found)

        self.begin(head + body, heard, is_head=is_head)
        if content is not None:
            self._pump = self._loop.create_task(self._send(content, chunked=chunked))
        try:
            return await head_came
        except asyncio.CancelledError:
            if self._heard is heard:
                self.abort()
            elif not head_came.cancelled() and head_came.exception() is None:
                head_came.result().close()  # whole, the connection may be somebody else's already
            raise

    def begin(self, request: bytes, heard: Heard, *, is_head: bool = False) -> None:
        """Send one request, on a connection that is not closed. `heard` is told of its answer, never at once."""
        self.used += 1
        if self._is_head:
            self._parser = httptools.HttpResponseParser(self)  # the old one still waits for a body
        self._response = Response(self)
        self._heard = heard
        self._head_came = self._interim = False
        self._fresh = not is_head
        self._header_bytes = 0
        self._unfinished = 0
        self._is_head = is_head
        self._until_close = False
        self.transport.write(request)

    async def _send(self, content: AsyncIterator[bytes], *, chunked: bool) -> None:
        """Send a streamed body. What ends it early breaks the connection: half a body must not look whole."""
        try:
            async for data in content:
                self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
                if self._drained is not None:
                    await asyncio.shield(self._drained)
            if chunked:
                self.transport.write(_LAST_CHUNK)
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception as error:  # noqa: BLE001 - whatever the caller's body ended with is told to whoever reads on
            self._fail(UpstreamError(f"the request's body ended early: {error}", reached=True))
            self.abort()
        else:
            self._pump = None
            if self._response is None:  # answered before it was sent
                self._released(self, True)

    # --- events of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            self.abort()  # nobody asked: whatever it is, it must not answer the next request
            return
        fresh, self._fresh = self._fresh, False
        known = self._last if fresh else None
        if fresh and (known is None or not known.is_all_of(data)):
            known = self._last = self._known.find(data)
            if known is not None and known.size != len(data):
                known = None
        if known is not None:
            response.came_whole(known.head, known.body(data))
            self._response = None
            self._keep = True
            if self._pump is None:
                self._released(self, True)
            self._tell(response)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(UpstreamError("the upstream switched protocols unasked", reached=True))
            self.abort()
        except httptools.HttpParserError as error:
            self._fail(UpstreamError(f"the upstream's answer is not HTTP/1.1: {error}", reached=True))
            self.abort()
        else:
            if fresh and self._response is None and self._keep:
                self._learn(data, response)
        if self._head_came:
            self._tell(response)
        else:
            self._count_head(len(data))

    def _learn(self, data: bytes, response: Response) -> None:
        body = response.piece()
        if body is not None:
            self._known.learn(data, response.status, response.headers, body)

    def _tell(self, found: Response | UpstreamError) -> None:
        heard, self._heard = self._heard, None
        if heard is not None:
            heard(found)

    def _count_head(self, size: int) -> None:
        """The parser keeps a header to itself until it has ended; one without end must not fill memory."""
        if self._heard is not None:
            self._unfinished += size
            if self._unfinished > 2 * _HEADER_BYTES:
                self._fail(UpstreamError("the upstream's headers do not end", reached=True))
                self.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.resume_writing()
        if self._until_close and exc is None and self._response is not None:
            self._end()
        self._fail(UpstreamError("the upstream closed the connection before its answer was whole", reached=True))
        if self._pump is not None:
            self._pump.cancel()
        self._released(self, False)

    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    # --- events of the parser

    def on_message_begin(self) -> None:
        if self._response is None:
            raise ValueError("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._response is None or self._head_came:
            return  # a trailer
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _HEADER_BYTES:
            raise ValueError(f"its headers are larger than {_HEADER_BYTES} bytes")
        self._response.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        response = self._response
        if response is None:
            return
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim:
            response.headers.clear()
            return
        names = {name for name, _ in response.headers}
        framed = not names.isdisjoint({b"content-length", b"transfer-encoding"})
        self._until_close = not framed and not self._is_head and status not in {204, 304}
        self._keep = self._parser.should_keep_alive() and not self._until_close
        response.status = status
        self._head_came = True
        if self._is_head:
            self._end()  # llhttp does not know that the request was HEAD, and would wait for a body

    def on_body(self, body: bytes) -> None:
        if self._response is not None:
            self._response.arrived(body)

    def on_message_complete(self) -> None:
        if not self._interim:
            self._end()

    def _end(self) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        response.ended()
        self.let_come()
        if not self._keep:
            self.transport.close()
        elif self._pump is None:
            self._loop.call_soon(self._released, self, True)  # after what else came in the same segment was seen

    def _fail(self, error: UpstreamError) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.fail(error)
        self._tell(response if self._head_came and response is not None else error)

    # --- what the response and the pool ask for

    def hold_back(self) -> None:
        """Let the upstream wait."""
        if not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def let_come(self) -> None:
        """Stop letting it wait."""
        if self._paused and not self.closed:
            self._paused = False
            self.transport.resume_reading()

    def rest(self) -> None:
        """Nothing is asked of it from now on."""
        self.idle_since = time.monotonic()

    def abort(self) -> None:
        """End it now."""
        self.closed = True
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
        self.transport.abort()
