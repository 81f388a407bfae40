"""uvicorn's protocols, adding the verified client certificate and the TLS version to the ASGI scope.

uvicorn does not do it itself (0.54); both classes read the transport's ssl object, which the TLS handshake filled.
"""

import asyncio
import ssl
from email.utils import formatdate
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from controller.identity.peer_certificate import TLS13, set_tls

__all__ = ["PIECE", "HttpProtocol", "InPieces", "WebSocketProtocol"]

PIECE: Final = 4096  # bytes
_VERSIONS: Final = {"TLSv1.2": 0x0303, "TLSv1.3": TLS13}


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with the ASGI TLS extension, and without an access log of its own: that has queries in it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False

    def on_message_begin(self) -> None:
        """Called by the parser for each request of the connection; the superclass has made the scope."""
        # RFC 9110 section 6.6.1. Here, because our server has no loop that would refresh it every second.
        date = (b"date", formatdate(usegmt=True).encode())
        self.server_state.default_headers = [date, *self.config.encoded_headers]
        super().on_message_begin()
        _describe_tls(cast(dict[str, Any], self.scope), self.transport)


class InPieces(asyncio.Transport):
    """A transport that is given no more than a piece at a time, whose bytes it encrypts and passes on at once.

    The memory BIO between OpenSSL and the socket never shrinks: without this, each stream keeps as much memory as the
    largest frame that it ever sent, which for a host with many peers is a megabyte.
    """

    __slots__ = ("_inner",)

    def __init__(self, inner: asyncio.Transport) -> None:
        self._inner = inner

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) <= PIECE:
            self._inner.write(data)
            return
        view = memoryview(data)
        for begin in range(0, len(view), PIECE):
            self._inner.write(view[begin : begin + PIECE])

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def close(self) -> None:
        self._inner.close()

    def abort(self) -> None:
        self._inner.abort()

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket with the ASGI TLS extension, which keeps little for as long as it stands: there are thousands."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called once, when the HTTP connection becomes a WebSocket."""
        super().connection_made(InPieces(cast(asyncio.Transport, transport)))

    def start_keepalive(self) -> None:
        """Called when the handshake has been answered: its headers are history."""
        super().start_keepalive()
        self.request.headers.clear()
        self.response.headers.clear()

    def keepalive_timeout(self) -> None:
        """Called when a ping was not answered in time."""
        super().keepalive_timeout()
        # Whoever stopped reading does not read what is left either: to wait for that keeps its memory for another 30 s.
        self.transport.abort()

    def handle_connect(self, event: Any) -> None:
        """Called for the opening handshake; the superclass has made the scope, its task has not run yet."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            _describe_tls(cast(dict[str, Any], self.scope), self.transport)


def _describe_tls(scope: dict[str, Any], transport: asyncio.Transport) -> None:
    connection: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if connection is None:
        return
    # Not None only if the handshake verified it: the context asks for CERT_OPTIONAL against the mesh's CA.
    certificate = connection.getpeercert(binary_form=True)
    set_tls(
        scope,
        version=_VERSIONS.get(connection.version() or ""),
        chain=(ssl.DER_cert_to_PEM_cert(certificate),) if certificate else (),
    )
