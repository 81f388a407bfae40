"""Where an upstream that asks for OAuth tokens itself says so (RFC 9728), in paths of the caller's and of its own.

Pure but for what it remembers. The gateway is not the resource: it knows no tokens and changes nothing of what the
metadata say, so an upstream must name itself by the URL under which callers reach it.
"""

import re
from typing import Final
from urllib.parse import urlsplit

from controller.wire.mcp import HttpUpstream, Service

from .passing import Guard

__all__ = ["Metadata"]

_WELL_KNOWN: Final = b"/.well-known/oauth-protected-resource"
_NAMED: Final = re.compile(rb'(?i)\bresource_metadata="([!#-~]{1,2048})"')  # RFC 9728 section 5.1
_MOST_NAMED: Final = 8


class Metadata:
    """The paths of one service. `target`: its upstream's path and query."""

    def __init__(self, service: Service, target: bytes, guard: Guard) -> None:
        self._guard = guard
        self._known: dict[bytes, bytes] = {}
        self._named: dict[bytes, None] = {}
        if isinstance(service.upstream, HttpUpstream):
            # section 3.1: the well-known part goes before the resource's own path
            self._known[_WELL_KNOWN + service.path.encode()] = _WELL_KNOWN + target.partition(b"?")[0]
            self._known[_WELL_KNOWN] = _WELL_KNOWN

    def find(self, target: bytes) -> bytes | None:
        """The upstream's path for what a caller asks for; None when that is no metadata."""
        return self._known.get(target) or (target if target in self._named else None)

    def learn(self, challenge: bytes) -> None:
        """Remember where the upstream's `WWW-Authenticate` says that its metadata are, if that is on this service."""
        found = _NAMED.search(challenge)
        if found is None:
            return
        try:
            parts = urlsplit(found[1])
        except ValueError:
            return  # no URL: whoever wanted to go there cannot, either
        if not parts.path or not self._guard.is_welcome(parts.scheme + b"://" + parts.netloc):
            return
        named = parts.path + (b"?" + parts.query if parts.query else b"")
        self._named[named] = None
        if len(self._named) > _MOST_NAMED:
            del self._named[next(iter(self._named))]
