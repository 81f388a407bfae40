"""Behind a proxy that ends the TLS: the client certificate in RFC 9440's Client-Cert, the client in X-Forwarded-For.

Both are believed from the configured proxy addresses only, and removed from everybody else's requests. The
certificate is verified here again, because a proxy that only passes it on looks the same as one that checked it.
"""

import base64
import binascii
import ipaddress
import logging
from collections.abc import Iterable
from typing import Any, Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from controller.clock import Clock
from controller.identity.ca import CertificateAuthority
from controller.identity.peer_certificate import TLS13, set_tls
from controller.problems import Refused

__all__ = ["ProxiedClients"]

_log = logging.getLogger(__name__)
_CLIENT_CERT: Final = b"client-cert"
_ABOUT_CLIENTS: Final = {_CLIENT_CERT, b"client-cert-chain", b"x-forwarded-for", b"x-forwarded-proto"}


class ProxiedClients:
    """ASGI middleware, outermost: it sees the address that the TCP connection really came from."""

    def __init__(
        self, app: ASGIApp, *, proxies: Iterable[str], authority: CertificateAuthority, mesh_id: str, now: Clock
    ) -> None:
        self._app = app
        self._proxies = [ipaddress.ip_network(proxy) for proxy in proxies]
        # uvicorn names the same ASGI types differently.
        self._forwarded: Any = ProxyHeadersMiddleware(cast(Any, app), [str(proxy) for proxy in self._proxies])
        self._authority = authority
        self._mesh_id = mesh_id
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Believe or remove what the headers say about the client."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        _unmap(scope)
        if self._is_proxy(scope):
            self._take_certificate(scope)
            await self._forwarded(scope, receive, send)
        else:
            scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() not in _ABOUT_CLIENTS]
            await self._app(scope, receive, send)

    def _is_proxy(self, scope: Scope) -> bool:
        if not self._proxies or not scope.get("client"):
            return False
        address = ipaddress.ip_address(scope["client"][0].partition("%")[0])
        return any(address in proxy for proxy in self._proxies)

    def _take_certificate(self, scope: Scope) -> None:
        values = [value for name, value in scope["headers"] if name.lower() == _CLIENT_CERT]
        certificate = self._verified(values[0]) if len(values) == 1 else None
        chain = (certificate.public_bytes(Encoding.PEM).decode(),) if certificate else ()
        # What the client spoke with the proxy is not in RFC 9440. Naming a proxy as trusted includes trusting it to
        # require TLS 1.3 where it asks for a certificate; controller/README.md says so.
        set_tls(scope, version=TLS13 if chain else None, chain=chain)

    def _verified(self, value: bytes) -> x509.Certificate | None:
        try:
            certificate = parse_client_cert(value)
            self._authority.issued(certificate, self._mesh_id)
        except (ValueError, Refused) as error:
            _log.warning("a proxy sent a Client-Cert that is not a node's: %s", error)
            return None
        now = self._now()
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            _log.warning("a proxy sent a Client-Cert that is not valid now")
            return None
        return certificate


def _unmap(scope: Scope) -> None:
    """Write an IPv4 client of a socket that listens on [::] as IPv4, as everybody who compares it expects."""
    if scope.get("client"):
        host, port = scope["client"]
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            scope["client"] = (str(address.ipv4_mapped), port)


def parse_client_cert(value: bytes) -> x509.Certificate:
    """The certificate of a Client-Cert field: an RFC 8941 byte sequence of DER. Raises ValueError."""
    text = value.strip()
    if len(text) < 2 or not (text.startswith(b":") and text.endswith(b":")):
        raise ValueError("Client-Cert is not a byte sequence (:base64:)")
    try:
        return x509.load_der_x509_certificate(base64.b64decode(text[1:-1], validate=True))
    except binascii.Error as error:
        raise ValueError("Client-Cert is not base64") from error
