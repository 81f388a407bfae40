"""Requests that offer an upgrade, which we never take: their bodies are read all the same.

Some clients (Java's among them) offer HTTP/2 on every request; llhttp then stops before the body. What follows is read
by a parser that was told how long it is.
"""

from typing import Any, Final, Protocol

import httptools

from ..types import Headers

__all__ = ["BodyListener", "body_parser"]

_BODY_ONLY: Final = b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n"
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class BodyListener(Protocol):
    """Whose request's body it is."""

    def on_body(self, body: bytes) -> None: ...

    def on_message_complete(self) -> None: ...

    def next_parser(self) -> None:
        """The body has ended; an ordinary parser reads on."""
        ...


def body_parser(headers: Headers, listener: BodyListener) -> Any:
    """A parser for the body that follows these headers."""
    framing = next((pair for pair in headers if pair[0] in _FRAMING), (b"content-length", b"0"))
    parser = httptools.HttpRequestParser(_Continued(listener))
    parser.feed_data(_BODY_ONLY % framing)
    return parser


class _Continued:
    """Hears of the body, and of nothing else."""

    __slots__ = ("_listener",)

    def __init__(self, listener: BodyListener) -> None:
        self._listener = listener

    def on_body(self, body: bytes) -> None:
        self._listener.on_body(body)

    def on_message_complete(self) -> None:
        self._listener.on_message_complete()
        self._listener.next_parser()
