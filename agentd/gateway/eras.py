"""Which protocol era a request speaks, and whether its headers and its body agree. Pure.

| opens with                                            | era    | then                                                |
| ----------------------------------------------------- | ------ | --------------------------------------------------- |
| `MCP-Protocol-Version` of a modern or unknown version | modern | `_meta` complete, headers equal body, version known |
| `_meta` names a protocol version, header absent/older | modern | the same: refused as a mismatch                     |
| anything else (`initialize`, a handshake's version)   | legacy | mirrored headers, where present, equal body         |

The order of the modern checks is the specification's (revision 2026-07-28, basic/transports/streamable-http): what
contradicts itself is told so before it is told that its version is unknown. Errors carry its codes and HTTP statuses.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from .jsonrpc import INVALID_REQUEST, Message
from .types import ClientInfo, Era, RequestId, TraceContext, value

__all__ = [
    "HEADER_MISMATCH",
    "INVALID_PARAMS",
    "LEGACY_VERSIONS",
    "METHOD_NOT_FOUND",
    "MODERN_ERRORS",
    "MODERN_VERSIONS",
    "UNSUPPORTED_VERSION",
    "Accepted",
    "Refusal",
    "classify",
    "client_info",
    "decoded_value",
    "mirrored_name",
    "repeated_routing",
    "speaks_alike",
    "stated_trace",
    "trace_context",
    "unsupported_version",
    "upstream_is_legacy",
    "upstream_is_modern_only",
]

MODERN_VERSIONS: Final = ("2026-07-28",)
LEGACY_VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26")  # newest first
_HANDSHAKE_VERSIONS: Final = frozenset({*LEGACY_VERSIONS, "2024-11-05"})

_PARSE_ERROR: Final = -32700
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022
# An answer with one of these comes from a modern server (basic/versioning, compatibility matrix).
MODERN_ERRORS: Final = frozenset({HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION})

VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"
CLIENT_KEY: Final = "io.modelcontextprotocol/clientInfo"
# Which parameter `Mcp-Name` mirrors.
_NAMED: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_ROUTING: Final = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name"})
_SENTINEL: Final = re.compile(rb"=\?base64\?(.*)\?=", re.DOTALL)
_SAFE: Final = re.compile(rb"[\x20-\x7e\t]*")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not a call: the HTTP status, and the JSON-RPC error of the body."""

    status: int
    code: int
    message: str
    id: RequestId | None = None
    data: Mapping[str, Any] | None = None


@value
class Accepted:
    """The message speaks this era. `name` is what it names: a tool, a prompt or a resource's URI."""

    era: Era
    version: str
    message: Message
    name: str | None


def classify(routing: Mapping[bytes, bytes], repeated: frozenset[bytes], message: Message) -> Accepted | Refusal:
    """Find the era of a POST and hold its headers against its body.

    `routing`: its headers by name in lower case; `repeated`: the names of those that came more than once.
    """
    refusal = repeated_routing(repeated, message.id)
    if refusal is not None:
        return refusal
    if message.kind == "notification" and not message.method.startswith("notifications/"):
        # A server that is lax about ids might do what it asks, without having been asked in a way that is checked.
        return Refusal(400, INVALID_REQUEST, f"{message.method} is a request and needs an id")
    raw = routing.get(b"mcp-protocol-version")
    header = raw.decode("latin-1") if raw is not None else None
    meta = message.params.get("_meta")
    claimed = meta.get(VERSION_KEY) if isinstance(meta, dict) else None
    if claimed is None and (header is None or header in _HANDSHAKE_VERSIONS):
        return _legacy(header, routing, message)
    if message.kind == "response":
        return Refusal(400, INVALID_REQUEST, "a client sends no responses in this revision of the protocol")
    if message.kind == "notification":
        return _modern_notification(header, claimed, routing, message)
    return _modern(header, meta, routing, message)


def speaks_alike(meta: Any, other: Any) -> bool:
    """Does a request with this `_meta` speak as one with the other, which was accepted, if all else of them is equal?

    Then `classify` says the same of both.
    """
    one, two = (given if isinstance(given, dict) else {} for given in (meta, other))
    return one.get(VERSION_KEY) == two.get(VERSION_KEY) and (CAPABILITIES_KEY in one) == (CAPABILITIES_KEY in two)


def repeated_routing(repeated: frozenset[bytes], request_id: RequestId | None = None) -> Refusal | None:
    """The refusal of a request in which a routing header came more than once: readers take the first, or the last."""
    if repeated.isdisjoint(_ROUTING):
        return None
    twice = min(repeated & _ROUTING).decode()
    return Refusal(400, HEADER_MISMATCH, f"{twice} header appears more than once", request_id)


def _modern(header: str | None, meta: Any, routing: Mapping[bytes, bytes], message: Message) -> Accepted | Refusal:
    refusal = _incomplete(meta, message) or _contradicts(header, meta[VERSION_KEY], routing, message)
    if refusal is not None:
        return refusal
    version, name = meta[VERSION_KEY], mirrored_name(message)
    if version not in MODERN_VERSIONS:
        return unsupported_version(version, message.id)
    return name if isinstance(name, Refusal) else Accepted("modern", version, message, name)


def _contradicts(header: str | None, claimed: Any, routing: Mapping[bytes, bytes], message: Message) -> Refusal | None:
    if header is None or header != claimed:
        return _mismatch("MCP-Protocol-Version", "the protocol version of params._meta", message)
    if routing.get(b"mcp-method") != message.method.encode():
        return _mismatch("Mcp-Method", "the body's method", message)
    name = mirrored_name(message)
    if isinstance(name, Refusal):
        return name
    if name is not None and not _mirrors(routing.get(b"mcp-name"), name):
        return _mismatch("Mcp-Name", f"the body's {_NAMED[message.method]!r} parameter", message)
    return None


def _incomplete(meta: Any, message: Message) -> Refusal | None:
    if not isinstance(meta, dict):
        text = f"params._meta must be an object with {VERSION_KEY!r} and {CAPABILITIES_KEY!r}"
        return Refusal(400, INVALID_PARAMS, text, message.id)
    if VERSION_KEY in meta and CAPABILITIES_KEY in meta:
        return None
    missing = [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in meta]
    return Refusal(400, INVALID_PARAMS, f"params._meta lacks {', '.join(missing)}", message.id)


def _modern_notification(
    header: str | None, claimed: Any, routing: Mapping[bytes, bytes], message: Message
) -> Accepted | Refusal:
    """The revision defines no headers for notifications; those that are there must not lie."""
    if header is None or (claimed is not None and claimed != header):
        return _mismatch("MCP-Protocol-Version", "the protocol version of params._meta", message)
    if routing.get(b"mcp-method") not in {None, message.method.encode()}:
        return _mismatch("Mcp-Method", "the body's method", message)
    if header not in MODERN_VERSIONS:
        return unsupported_version(header, None)
    return Accepted("modern", header, message, None)


def _legacy(header: str | None, routing: Mapping[bytes, bytes], message: Message) -> Accepted | Refusal:
    if routing.get(b"mcp-method") not in {None, message.method.encode()}:
        return _mismatch("Mcp-Method", "the body's method", message)
    name = mirrored_name(message)
    if isinstance(name, Refusal):
        return replace(name, status=200)  # legacy servers answer every request that they could read with 200
    if b"mcp-name" in routing and (name is None or not _mirrors(routing[b"mcp-name"], name)):
        return _mismatch("Mcp-Name", "what the body names", message)
    # revisions before 2025-06-18 had no such header (2025-11-25, basic/transports, protocol version header)
    return Accepted("legacy", header or "2025-03-26", message, name)


def mirrored_name(message: Message) -> str | Refusal | None:
    """The tool, prompt or URI that the message names; None when its method names none."""
    key = _NAMED.get(message.method)
    if key is None or message.kind != "request":
        return None
    name = message.params.get(key)
    if not isinstance(name, str):
        return Refusal(400, INVALID_PARAMS, f"{message.method} must name what it is about in params.{key}", message.id)
    return name


def unsupported_version(requested: str, id: RequestId | None, supported: tuple[str, ...] = ()) -> Refusal:  # noqa: A002
    """The error that names what is supported: by default the revisions that requests like this one can be in.

    Only those that `server/discover` names (basic/versioning): legacy revisions are had by `initialize`.
    """
    return Refusal(
        400,
        UNSUPPORTED_VERSION,
        "Unsupported protocol version",
        id,
        {"supported": list(supported or MODERN_VERSIONS), "requested": requested},
    )


def upstream_is_legacy(status: int, code: int | None) -> bool:
    """Is this the answer of a server that knows no modern revision, to a modern request that was valid?

    The matrix of basic/versioning: a 4xx without a recognised modern error. `code`: of its JSON-RPC error, if any.
    """
    return status == 400 and code not in MODERN_ERRORS and code not in {_PARSE_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND}


def upstream_is_modern_only(status: int, code: int | None) -> bool:
    """Is this the answer of a server that knows no legacy revision, to an `initialize` that was valid?"""
    return status in {400, 404} and (code in MODERN_ERRORS or code in {INVALID_PARAMS, METHOD_NOT_FOUND})


def client_info(message: Message) -> ClientInfo | None:
    """What the client says of itself, in either era; unverified, and cut to a length that a log can bear."""
    meta = message.params.get("_meta")
    claimed = meta.get(CLIENT_KEY) if isinstance(meta, dict) else None
    if claimed is None and message.method == "initialize":
        claimed = message.params.get("clientInfo")
    if not isinstance(claimed, dict):
        return None
    return ClientInfo(str(claimed.get("name", ""))[:128], str(claimed.get("version", ""))[:64])


def trace_context(message: Message, fields: Mapping[bytes, bytes]) -> TraceContext | None:
    """W3C trace context from `_meta`, else from the headers (by name)."""
    stated = stated_trace(message)
    if stated is not None:
        return stated
    if b"traceparent" not in fields:
        return None
    found = {key: fields[key].decode("latin-1")[:512] for key in _TRACE if key in fields}
    return TraceContext(found[b"traceparent"], found.get(b"tracestate"), found.get(b"baggage"))


def stated_trace(message: Message) -> TraceContext | None:
    """W3C trace context as `_meta` states it."""
    meta = message.params.get("_meta")
    if not isinstance(meta, dict) or not isinstance(meta.get("traceparent"), str):
        return None
    return TraceContext(*(_text(meta.get(key)) for key in ("traceparent", "tracestate", "baggage")))


_TRACE: Final = frozenset({b"traceparent", b"tracestate", b"baggage"})


def _text(claimed: Any) -> Any:
    return claimed[:512] if isinstance(claimed, str) else None


def _mismatch(header: str, what: str, message: Message) -> Refusal:
    return Refusal(400, HEADER_MISMATCH, f"{header} header is missing or does not match {what}", message.id)


def _mirrors(header: bytes | None, name: str) -> bool:
    """Does the header say the name?"""
    if header == name.encode() and name.isascii() and name.isprintable() and not name.startswith("=?"):
        return True  # plain, as nearly always
    return decoded_value(header) == name


def decoded_value(header: bytes | None) -> str | None:
    """A header's value, out of its base64 envelope; None when it is not one that a client may send."""
    if header is None or not _SAFE.fullmatch(header):
        return None
    envelope = _SENTINEL.fullmatch(header)
    if envelope is None:
        return header.decode()
    try:
        decoded = base64.b64decode(envelope[1], validate=True)
        # unused bits of the last character are ignored by some decoders: one spelling only
        return decoded.decode() if base64.b64encode(decoded) == envelope[1] else None
    except (binascii.Error, UnicodeDecodeError):
        return None
