"""An HTTP upstream: kept connections to one origin, and what is sent on them.

A kept connection may die as a request is written to it. Only a request that may be done twice is sent again.
"""

import asyncio
import ssl
import time
from typing import Final
from urllib.parse import urlsplit

from ..types import UpstreamError, UpstreamRequest, UpstreamResponse
from .client import UpstreamConnection
from .heads import KnownAnswers

__all__ = ["HttpUpstream"]

_CONNECT_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 1.0
# Shorter than the shortest common server's patience (uvicorn's is 5 s), so that it is us who close first.
_IDLE_SECONDS: Final = 4.0
_KEPT: Final = 256


class HttpUpstream:
    """One origin (`Upstream`). `connections` bounds how many are open at a time."""

    def __init__(self, url: str, *, connections: int = 8192, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or parts.hostname is None:
            raise ValueError(f"{url!r} is not an upstream: write it like http://127.0.0.1:3000/mcp")
        secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port or (443 if secure else 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._authority = (host if parts.port is None else f"{host}:{self.port}").encode()
        self._shown = f"{parts.scheme}://{self._authority.decode()}"
        self._tls = (tls or ssl.create_default_context()) if secure else None
        self._limit = connections
        self._all: set[UpstreamConnection] = set()
        self._idle: list[UpstreamConnection] = []
        self._answers = KnownAnswers()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send the request; returns when the answer's head is there. Raises UpstreamError."""
        head = self._head(request)
        while True:
            connection = self.kept() or await self._connect()
            fresh = connection.used == 0
            try:
                return await connection.ask(
                    head,
                    request.body,
                    is_head=request.method == "HEAD",
                    content=request.content,
                    chunked=request.content is not None and request.length is None,
                )
            except UpstreamError as error:
                if fresh or (error.reached and not request.replayable) or request.content is not None:
                    raise

    def kept(self) -> UpstreamConnection | None:
        """A connection that takes a request now, for the caller alone: to begin one on, or to give back."""
        oldest = time.monotonic() - _IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and not connection.transport.is_closing() and connection.idle_since >= oldest:
                return connection
            connection.abort()
        return None

    def give_back(self, connection: UpstreamConnection) -> None:
        """It was not used after all."""
        self._idle.append(connection)

    async def check(self) -> str | None:
        """Does it take connections?"""
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                _, writer = await asyncio.open_connection(self.host, self.port)
        except TimeoutError:
            return f"{self._shown} took no connection within {_CHECK_SECONDS:.0f} s"
        except OSError as error:
            return f"{self._shown} takes no connections: {error.strerror or error}"
        writer.close()
        return None

    def _head(self, request: UpstreamRequest) -> bytes:
        lines = [self._start(request)]
        if request.content is not None:
            framing = (
                b"transfer-encoding: chunked" if request.length is None else b"content-length: %d" % request.length
            )
            lines.append(framing + b"\r\n")
        elif request.body or request.method in {"POST", "PUT", "PATCH"}:
            lines.append(b"content-length: %d\r\n" % len(request.body))
        lines.append(b"\r\n")
        return b"".join(lines)

    def head_before_length(self, request: UpstreamRequest) -> bytes:
        """A head that only lacks its length, two line ends and the body."""
        return self._start(request) + b"content-length: "

    def _start(self, request: UpstreamRequest) -> bytes:
        lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (request.method.encode(), request.target, self._authority)]
        lines += [b"%b: %b\r\n" % pair for pair in request.headers]
        return b"".join(lines)

    async def _connect(self) -> UpstreamConnection:
        if self._closed:
            raise UpstreamError(f"{self._shown} is not served any more", reached=False)
        if len(self._all) >= self._limit:
            raise UpstreamError(f"{self._shown} has {self._limit} requests under way: try again later", reached=False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self._released, self._answers), self.host, self.port, ssl=self._tls
                )
        except TimeoutError:
            raise UpstreamError(
                f"{self._shown} took no connection within {_CONNECT_SECONDS:.0f} s", reached=False
            ) from None
        except OSError as error:
            why = error.strerror or str(error)
            raise UpstreamError(f"{self._shown} takes no connections: {why}", reached=False) from error
        self._all.add(connection)
        return connection

    def _released(self, connection: UpstreamConnection, keep: bool) -> None:
        if connection.closed or not keep or self._closed or len(self._idle) >= _KEPT:
            if connection in self._idle:
                self._idle.remove(connection)
            self._all.discard(connection)
            if not connection.closed:
                connection.abort()
            return
        connection.rest()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._close_old)

    def _close_old(self) -> None:
        oldest = time.monotonic() - _IDLE_SECONDS
        for connection in [one for one in self._idle if one.idle_since <= oldest]:
            self._idle.remove(connection)
            connection.abort()
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(_IDLE_SECONDS, self._close_old) if self._idle else None

    async def close(self) -> None:
        """Give everything back; open responses end with UpstreamError."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()
