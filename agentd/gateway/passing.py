"""Which headers pass the gateway, in both directions. Pure."""

import re
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from controller.wire.mcp import Service

from .http.head import HOP_BY_HOP, connection_options
from .types import Caller, Headers

__all__ = ["Guard", "answer_headers", "request_headers"]

# Ours to set, or said by a caller what only we can know; `accept-encoding` because what is compressed cannot be read.
_NOT_PASSED: Final = HOP_BY_HOP | {
    b"accept-encoding",
    b"content-length",
    b"expect",
    b"forwarded",
    b"host",
    b"last-event-id",
    b"mcp-session-id",
    b"origin",
    b"x-real-ip",
}
# Servers behind CGI or WSGI cannot tell `_` from `-`: these names must not come in by the other spelling either.
# (A parameter that a tool mirrors in Mcp-Param-* may have `_` in its name, and passes untouched.)
_FORGED: Final = re.compile(
    rb"wardmesh[-_].*|x[-_]forwarded[-_].*|(?:content|transfer|mcp|last|accept|x)_.*|mcp-(?!param-).*_.*|x-[a-z]+_.*"
)
_NONE: Final[frozenset[bytes]] = frozenset()
_NOT_ANSWERED: Final = HOP_BY_HOP | {b"content-length", b"mcp-session-id"}


def request_headers(headers: Headers, caller: Caller) -> list[tuple[bytes, bytes]]:
    """What goes upstream of a caller's headers, with who it is. Session and resumption are added by who opened them."""
    options = connection_options(headers) if any(name == b"connection" for name, _ in headers) else _NONE
    passed = [pair for pair in headers if _passes(pair[0]) and pair[0] not in options]
    passed += _identity(caller)
    return passed


@lru_cache(maxsize=1024)
def _passes(name: bytes) -> bool:
    return name not in _NOT_PASSED and not _FORGED.fullmatch(name)


@lru_cache(maxsize=1024)
def _identity(caller: Caller) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"accept-encoding", b"identity"),
        (b"wardmesh-node", caller.name.encode()),
        (b"wardmesh-node-id", caller.node_id.encode()),
        (b"wardmesh-tags", ",".join(caller.tags).encode()),
    )


def answer_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What of an upstream's headers goes to the caller. The session id is added, sealed, by who knows the caller."""
    dropped = _NOT_ANSWERED
    if any(name == b"connection" for name, _ in headers):
        dropped = dropped | connection_options(headers)
    return [pair for pair in headers if pair[0] not in dropped]


class Guard:
    """Whether a request was meant for this service: its Host, and the web page that it comes from."""

    def __init__(self, service: Service) -> None:
        hosts = {*service.names, *(f"[{one}]" if ":" in one else one for one in service.addresses)}
        ports = {service.port, service.tls_port} - {None}
        spellings = {f"{host}:{port}" for host in hosts for port in ports}
        if ports & {80, 443}:
            spellings |= hosts | {f"{host}." for host in service.names}
        self._hosts = frozenset(spelling.lower().encode() for spelling in spellings)
        self._origins = frozenset(origin.lower().rstrip("/").encode() for origin in service.origins)

    def is_ours(self, host: bytes | None) -> bool:
        """Does the Host header name this service? A DNS name that was rebound to our address does not."""
        return host is not None and host.lower() in self._hosts

    def is_welcome(self, origin: bytes) -> bool:
        """May a page of this origin call? Its own pages and those that the policy names; never `null`."""
        folded = origin.lower()
        if folded in self._origins:
            return True
        try:
            parts = urlsplit(folded.decode("ascii"))
            return parts.scheme in {"http", "https"} and parts.netloc.encode() in self._hosts
        except (UnicodeDecodeError, ValueError):
            return False
