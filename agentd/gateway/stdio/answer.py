"""An answer that is being made from a server's messages: JSON when the first is the last, a stream otherwise."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import orjson

from ..sse import event
from ..types import Headers, RequestId, UpstreamError

__all__ = ["Answer", "empty", "error_answer", "json_answer", "stream_answer"]

_MOST_UNREAD: Final = 8 * 1024 * 1024  # bytes that a slow caller may leave with us before its stream ends
JSON_HEADERS: Final = ((b"content-type", b"application/json"),)
STREAM_HEADERS: Final = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache, no-transform"))


class Answer:
    """`UpstreamResponse` whose body others push. `on_close` is told when the reader leaves before the end."""

    def __init__(self, status: int, headers: Headers, on_close: Callable[[], None] | None = None) -> None:
        self.status = status
        self.headers = headers
        self._on_close = on_close
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._ended = False
        self._failure: UpstreamError | None = None
        self._waiting: asyncio.Future[None] | None = None

    @property
    def open(self) -> bool:
        """More may be pushed."""
        return not self._ended and self._failure is None

    def push(self, data: bytes) -> None:
        """More of the body. A reader that is too slow loses the answer, so that it cannot hold up the others."""
        if not self.open:
            return
        self._unread += len(data)
        if self._unread > _MOST_UNREAD:
            self.fail(UpstreamError("the caller reads too slowly", reached=True))
            self._leave()
            return
        self._chunks.append(data)
        self._wake()

    def push_event(self, message: bytes) -> None:
        """One message on a stream."""
        self.push(event(message))

    def finish(self) -> None:
        """The body is complete."""
        self._ended = True
        self._wake()

    def fail(self, failure: UpstreamError) -> None:
        """The body will never be complete."""
        if self.open:
            self._failure = failure
            self._wake()

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Raises UpstreamError."""
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._unread = 0
        return data

    def close(self) -> None:
        """The reader leaves."""
        if self.open:
            self.fail(UpstreamError("the answer was closed", reached=True))
            self._leave()

    def _leave(self) -> None:
        if self._on_close is not None:
            self._on_close()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def json_answer(status: int, body: bytes, headers: Headers = ()) -> Answer:
    """A whole JSON answer."""
    answer = Answer(status, [*JSON_HEADERS, (b"content-length", b"%d" % len(body)), *headers])
    answer.push(body)
    answer.finish()
    return answer


def stream_answer(on_close: Callable[[], None]) -> Answer:
    """A stream of events that begins now."""
    return Answer(200, STREAM_HEADERS, on_close)


def empty(status: int) -> Answer:
    """An answer without a body."""
    answer = Answer(status, ((b"content-length", b"0"),))
    answer.finish()
    return answer


def error_answer(status: int, request_id: RequestId | None, code: int, message: str, data: Any = None) -> Answer:
    """A JSON-RPC error of the bridge's own."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return json_answer(status, orjson.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}))
