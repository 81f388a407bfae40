"""Spans of what the controller does, for whoever follows a request through it: off by default, and then nothing.

Knows no OpenTelemetry: `controller.otlp` sends spans there. Attributes are chosen by the callers, like what is logged:
names, ids, numbers. Never headers, bodies, paths or queries, where secrets are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.logs import request_id

__all__ = ["Attribute", "RequestSpans", "Span", "Tracing"]

Attribute = str | int
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Span(Protocol):
    """One piece of work, while it is done."""

    def note(self, name: str, value: Attribute) -> None:
        """State a fact of it."""

    def rename(self, name: str) -> None:
        """Call it something else, now that more is known."""


class _NoSpan:
    def note(self, name: str, value: Attribute) -> None:
        """Nobody wants to know."""

    def rename(self, name: str) -> None:
        """Nobody wants to know."""


_NO_SPAN: Final = _NoSpan()


class Tracing:
    """Makes spans, each within the one that surrounds it. This one makes none."""

    @contextmanager
    def span(self, name: str, *, alone: bool = True) -> Iterator[Span]:
        """What is done inside; `alone` False: only as a part of something that is traced."""
        yield _NO_SPAN

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """A request that is answered inside, as a part of what its `traceparent` header says (W3C Trace Context)."""
        yield _NO_SPAN

    def close(self) -> None:
        """Send what was not sent yet. Blocks for some seconds at most."""


class RequestSpans:
    """ASGI middleware: one span for each request, by the route that answered it."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with self._tracing.request(method, Headers(scope=scope)) as span:
            span.note("http.request.method", method)
            span.note("wardmesh.request_id", request_id())

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.note("http.response.status_code", message["status"])
                await send(message)

            try:
                await self._app(scope, receive, sending)
            finally:
                if route := getattr(scope.get("route"), "path", None):
                    span.note("http.route", route)
                    span.rename(f"{method} {route}")
