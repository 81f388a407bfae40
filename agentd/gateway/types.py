"""What the gateway's parts exchange: callers, calls, decisions, audit records, upstreams.

Values and protocols only. Imports no other part of the gateway, so that data path and policy know each other by these.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final, Literal, Protocol, TypeVar, dataclass_transform

from controller.wire.base import Address, NodeName, PublicKey, Tag
from controller.wire.mcp import AuditRules
from controller.wire.netmap import NodeId

__all__ = [
    "LIST_METHODS",
    "TRANSPORT_RESPONSE",
    "TRANSPORT_STREAM",
    "TRANSPORT_TERMINATE",
    "Allow",
    "Allowance",
    "AuditEvent",
    "AuditRecord",
    "AuditSink",
    "Call",
    "Caller",
    "ClientInfo",
    "Code",
    "Decision",
    "Deny",
    "Era",
    "Headers",
    "Outcome",
    "Particulars",
    "Policy",
    "RecordForm",
    "RequestId",
    "Rewrite",
    "TraceContext",
    "Upstream",
    "UpstreamError",
    "UpstreamRequest",
    "UpstreamResponse",
    "value",
]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass that is frozen to the type checker only, for what is made for every call.

    A frozen one costs 3 us to make at a dozen fields, this one 0.6 us, and a call makes seven of them.
    """
    return dataclass(slots=True)(cls)


# modern: 2026-07-28, stateless. legacy: 2025-03-26 to 2025-11-25, sessions. http: a service of kind http.
Era = Literal["modern", "legacy", "http"]
RequestId = str | int
Headers = Sequence[tuple[bytes, bytes]]  # names in lower case, values without surrounding white space

# Their results are rewritten to what the caller may use; they are the only results that are held back to be read first.
LIST_METHODS: Final = frozenset({"tools/list", "prompts/list", "resources/list", "resources/templates/list"})

# What a legacy client does besides calling, as `Call.method` in the audit trail: open the GET stream, DELETE its
# session, answer a request of the server. Policy is asked whether the caller may `ping`: any grant allows them.
TRANSPORT_STREAM: Final = "transport/stream"
TRANSPORT_TERMINATE: Final = "transport/terminate"
TRANSPORT_RESPONSE: Final = "transport/response"


class Code(IntEnum):
    """Our own JSON-RPC error codes: outside -32768..-32000, which JSON-RPC 2.0 (section 5.1) reserves.

    The first three digits are the HTTP status that says the same.
    """

    DENIED = 40300  # no grant allows this tool, prompt, resource or method
    ARGUMENT_DENIED = 40301  # a grant names the tool, but not with these arguments
    CALLER_UNKNOWN = 40302  # the caller's address stopped being anybody's
    TOO_MANY_CALLS = 42900  # over a rate limit; the message says when to come back
    TOO_MANY_STREAMS = 42901
    UPSTREAM_BROKEN = 50200  # it answered what is not an answer, or died in the middle of one
    UPSTREAM_UNREACHABLE = 50201
    AUDIT_FULL = 50300  # what cannot be recorded is not done
    STOPPING = 50301  # the gateway is going down; the request was not passed on


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a connection comes from, as WireGuard's cryptokey routing proves it. `address` is the one it came from."""

    node_id: NodeId
    name: NodeName
    public_key: PublicKey
    tags: tuple[Tag, ...]
    address: Address


@value
class ClientInfo:
    """What the client says of itself. Unverified: for the audit trail, never for a decision."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class TraceContext:
    """W3C trace context, from `_meta` of the request or from its headers. Chosen by the caller."""

    traceparent: str
    tracestate: str | None = None
    baggage: str | None = None


@value
class Call:
    """One JSON-RPC request or notification, strictly parsed; for a service of kind http, one HTTP request.

    `name`: the tool, the prompt or the resource's URI; for kind http the path with its query. `params` is the parsed
    body's (shared, not to be changed), `arguments` its `arguments`. `request_id` None: a notification. `body`: the
    bytes as they came; empty for kind http.
    """

    service: str
    era: Era
    method: str
    name: str | None
    arguments: Mapping[str, Any] | None
    request_id: RequestId | None
    body: bytes
    params: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    trace: TraceContext | None = None
    client_info: ClientInfo | None = None


@value
class Particulars:
    """What one call has of its own among calls that are alike: the members of `Call` of these names."""

    request_id: RequestId | None
    arguments: Mapping[str, Any] | None
    body: bytes
    trace: TraceContext | None = None


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What goes upstream instead. `headers` replace those of the same name: mirrors of arguments must follow them."""

    body: bytes
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Allow:
    """Pass it on, because of `grant`."""

    grant: str
    rewrite: Rewrite | None = None


@dataclass(frozen=True, slots=True)
class Deny:
    """Answer with a JSON-RPC error that a model can act on. `grant_needed` describes the grant that would allow it.

    `breach`: the limit that was breached and what follows; the caller's open streams of this service end too.
    """

    code: int
    message: str
    grant_needed: str | None = None
    breach: str | None = None


Decision = Allow | Deny


class Allowance(Protocol):
    """What was decided of a use, as far as it stands until the policy changes: the rest depends on each call.

    Asking it is what counts a call against its limits, as `Policy.decide` does.
    """

    @property
    def decision(self) -> Allow: ...

    def allows(self, arguments: Mapping[str, Any], now: float) -> bool:
        """Is a call with these arguments allowed now, by this alone? False: nothing was counted; decide anew."""
        ...

    def uncount(self) -> None:
        """The call that was just allowed is not passed on, and is decided anew."""
        ...


class Policy(Protocol):
    """What callers may do; immutable but for its counters. A changed policy is another object."""

    def decide(self, caller: Caller, call: Call, now: float) -> Decision:
        """Decide once a call, counting it against its limits. `now` is in seconds since the epoch."""
        ...

    def allowance(self, caller: Caller, call: Call, now: float) -> Allowance | None:
        """What decides calls like this one; None when each must be decided on its own."""
        ...

    def holds(self, caller: Caller, call: Call, now: float) -> bool:
        """Is a call that was allowed still allowed? Counts nothing; asked of open streams when the policy changed."""
        ...

    def filter(self, caller: Caller, service: str, method: str, result: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The result of one of LIST_METHODS as this caller may see it; None: as it is."""
        ...


class AuditEvent(StrEnum):
    """Every event of the gateway's audit trail: source, subject, action."""

    CALL_ALLOWED = "gateway:call:allowed"  # before the call is passed on
    CALL_DENIED = "gateway:call:denied"
    CALL_ENDED = "gateway:call:ended"  # with the outcome; same id as its CALL_ALLOWED
    REQUEST_REFUSED = "gateway:request:refused"  # it never became a call: malformed, mismatched, foreign origin
    SESSION_OPENED = "gateway:session:opened"
    SESSION_CLOSED = "gateway:session:closed"
    SESSION_REFUSED = "gateway:session:refused"  # a session id that is not this caller's
    LIMIT_BREACHED = "gateway:limit:breached"  # beside the denial of the call that did it
    STREAM_REVOKED = "gateway:stream:revoked"  # an open stream ended because it is no longer allowed


@value
class Outcome:
    """How an exchange ended. Bytes are those of the HTTP bodies. `error`: the JSON-RPC error code of the answer.

    `problem`: what went wrong on the way, None when nothing did (an upstream's own error is not a problem of ours).
    """

    status: int
    bytes_in: int
    bytes_out: int
    seconds: float
    error: int | None = None
    problem: str | None = None


@value
class AuditRecord:
    """One thing that happened. `id` joins the records of one exchange; `time` is in seconds since the epoch.

    `session` is the session id as the upstream knows it; whoever writes the record writes a digest of it.
    """

    event: AuditEvent
    time: float
    id: str
    service: str
    caller: Caller
    call: Call | None = None
    decision: Decision | None = None
    outcome: Outcome | None = None
    session: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class RecordForm:
    """What records like `record` have in common. `template` and `rules` are the sink's."""

    record: AuditRecord
    template: bytes
    rules: AuditRules


class AuditSink(Protocol):
    """Where records go: a bounded spool on disk."""

    def record(self, record: AuditRecord) -> bool:
        """Take the record. False: there is no room and the service's policy is to deny what cannot be recorded.

        When the policy is to drop, a sink without room counts the gap and answers True.
        """
        ...

    def form(self, record: AuditRecord) -> RecordForm:
        """What records like this one have in common, whose calls differ in nothing but their `Particulars`.

        It is good until the service's rules change.
        """
        ...

    def allowed(self, form: RecordForm, time: float, record_id: str, call: Particulars) -> bool:
        """Take a CALL_ALLOWED like the form's, of this call. False: `record` is to take it."""
        ...

    def ended(self, form: RecordForm, time: float, record_id: str, sizes: tuple[int, int], seconds: float) -> bool:
        """Take a CALL_ENDED like the form's, with this outcome; False as with `allowed`. `sizes`: bytes in and out."""
        ...


class UpstreamError(Exception):
    """The upstream did not answer properly. `reached`: it may have seen the request. The text is for the caller."""

    def __init__(self, message: str, *, reached: bool) -> None:
        super().__init__(message)
        self.reached = reached


@value
class UpstreamRequest:
    """What the gateway passes on. `headers` are clean: no hop-by-hop ones, nothing that the caller could forge.

    `target` is the path and query for an HTTP upstream. `session` is the upstream's own id, unsealed. `replayable`:
    doing it twice changes nothing, so it may be sent again when a kept connection turns out to be dead. `content`, for
    kind http, is a body too large to wait for; `length` its length, None when only its end tells.
    """

    method: str
    target: bytes
    headers: Headers
    body: bytes
    caller: Caller
    call: Call | None = None
    session: str | None = None
    last_event_id: str | None = None
    replayable: bool = False
    content: AsyncIterator[bytes] | None = None
    length: int | None = None


class UpstreamResponse(Protocol):
    """An answer whose head has come. Whoever opened it reads it to the end or closes it."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers: ...

    async def read(self) -> bytes:
        """The next bytes of the body, as soon as there are any; b"" at its end.

        Raises UpstreamError when the upstream died before the end. Cancelling it loses no bytes.
        """
        ...

    def close(self) -> None:
        """Stop now; before the end this cancels the request upstream. Idempotent, never blocks.

        A `read` that is waiting raises UpstreamError.
        """
        ...


class Upstream(Protocol):
    """A server that calls are passed on to: HTTP, or a process on standard input and output."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send the request and return when the answer's head is there. Raises UpstreamError.

        Cancelling it cancels the request upstream.
        """
        ...

    async def check(self) -> str | None:
        """None when it would take a request now, or why not. Sends none, starts nothing, takes a second at most."""
        ...

    async def close(self) -> None:
        """Give back everything; open responses end with UpstreamError."""
        ...
