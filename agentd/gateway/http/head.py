"""Heads of requests and responses: what llhttp lets through and we do not, and what may pass to the next hop.

Pure. llhttp in its strict mode already refuses Content-Length with Transfer-Encoding, repeated Content-Length, bare CR
or LF, folded lines, white space before the colon and control characters; the rest of RFC 9112 section 11 is here.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from ..types import Headers

__all__ = [
    "HOP_BY_HOP",
    "AnswerHead",
    "BadRequestError",
    "RequestHead",
    "check_request",
    "connection_options",
    "find",
    "reason",
    "render_fault",
    "render_head",
    "without_hop_by_hop",
]

# RFC 9110 section 7.6.1, with what RFC 7540 added for its retired upgrade.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# A `Connection` option that names one of these would make the next hop see another request than we judged.
_END_TO_END: Final = re.compile(rb"mcp-.*|content-.*|wardmesh-.*|host|origin|authorization|accept|cookie|last-event-id")
_SINGLE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect", b"origin"})
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


_NONE: Final[frozenset[bytes]] = frozenset()


class BadRequestError(Exception):
    """The request cannot be answered as asked; the connection ends after `status`, with the text as its body."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class RequestHead:
    """A request's head. `headers`: names in lower case, in the order they came.

    `fields`: by name, the last of equal ones. `repeated`: names of what came more than once; whoever decides by a field
    asks there first. `kin`: the same for all heads that differ in nothing but the length, for whoever remembers what
    follows from them; None for one that will not be known when it comes again.
    """

    method: str = ""
    target: bytes = b""
    version: str = "1.1"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    fields: dict[bytes, bytes] = field(default_factory=dict)
    repeated: frozenset[bytes] = _NONE
    kin: Hashable | None = None

    def arrived(self) -> None:
        """All headers are there."""
        self.fields = dict(self.headers)
        if len(self.fields) != len(self.headers):
            counts = Counter(name for name, _ in self.headers)
            self.repeated = frozenset(name for name, count in counts.items() if count > 1)


@dataclass(slots=True, eq=False)
class AnswerHead:
    """An answer's head that came before; `kin` as with requests. Not to be changed."""

    status: int
    headers: list[tuple[bytes, bytes]]
    kin: Hashable


def find(headers: Headers, name: bytes) -> bytes | None:
    """The first value of the header `name` (lower case)."""
    for key, value in headers:
        if key == name:
            return value
    return None


def connection_options(headers: Headers) -> set[bytes]:
    """The options that `Connection` lists, in lower case."""
    options: set[bytes] = set()
    for key, value in headers:
        if key == b"connection":
            options.update(option.strip().lower() for option in value.split(b","))
    return options


def check_request(head: RequestHead) -> None:
    """Refuse what two readers could take for different requests. Raises BadRequestError."""
    if head.version not in {"1.0", "1.1"}:
        raise BadRequestError(505, "this server speaks HTTP/1.1")
    if head.method not in _METHODS:
        raise BadRequestError(501, f"the method {head.method} is not served")
    if not head.target.startswith(b"/") or b"#" in head.target:
        raise BadRequestError(400, "the request target must be a path: /mcp")
    fields = head.fields
    if not head.repeated.isdisjoint(_SINGLE):
        name = min(head.repeated & _SINGLE).decode()
        raise BadRequestError(400, f"the header {name} appears more than once")
    # RFC 9112 section 6.1: a coding that we do not know has a length that we do not know; one in a message of HTTP/1.0
    # is a sign of smuggling.
    coding = fields.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or head.version == "1.0"):
        raise BadRequestError(501, "the only transfer coding is chunked, in HTTP/1.1")
    if b"connection" in fields and any(map(_END_TO_END.fullmatch, connection_options(head.headers))):
        raise BadRequestError(400, "Connection names a header that is not its to name")
    if b"expect" in fields and fields[b"expect"].lower() != b"100-continue":
        raise BadRequestError(417, "the only expectation is 100-continue")
    if b"host" not in fields and head.version == "1.1":
        raise BadRequestError(400, "the Host header is missing")


def without_hop_by_hop(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that concern both ends: neither of this hop nor named by `Connection`."""
    if any(name == b"connection" for name, _ in headers):
        dropped: Iterable[bytes] = HOP_BY_HOP | connection_options(headers)
    else:
        dropped = HOP_BY_HOP
    return [pair for pair in headers if pair[0] not in dropped]


def reason(status: int) -> bytes:
    """The phrase for a status code; RFC 9112 section 4 lets it be empty."""
    return _REASONS.get(status, b"")


def render_head(status: int, headers: Headers) -> bytes:
    """A response's head with its empty line."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason(status))]
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    lines.append(b"\r\n")
    return b"".join(lines)


def render_fault(fault: BadRequestError) -> bytes:
    """The whole answer that says it, after which the connection ends."""
    body = f"{fault}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    return render_head(fault.status, headers) + body
