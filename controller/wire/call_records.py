"""What a gateway records of sessions, calls and decisions: from its spool over agentd to the controller, and over REST.

A record is one thing that happened; those of one exchange share an `id`. Texts were chosen by callers and servers: they
are bounded and hold no NUL, but whoever shows them to a person makes control characters visible. The host that tells is
not in a record: the controller knows it from the stream's certificate.
"""

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, JsonValue

from .base import Address, Message, NodeName, PublicKey, Text
from .mcp import ServiceName
from .netmap import NodeId

__all__ = [
    "LARGEST_RECORD",
    "LARGEST_RECORDS",
    "MOST_RECORDS",
    "CallEntry",
    "CallRecord",
    "ClaimedClient",
    "RecordDecision",
    "RecordOutcome",
    "RecordedCall",
    "RecordedCaller",
    "Records",
    "Sequence",
    "SpoolId",
    "Verdict",
]

MOST_RECORDS: Final = 250  # in one frame
LARGEST_RECORD: Final = 48 * 1024  # characters of JSON
LARGEST_RECORDS: Final = 128 * 1024  # characters of the JSON of all records of a frame

Count = Annotated[int, Field(ge=0, lt=2**63)]
Claim = Annotated[Text, Field(max_length=2048)]  # a text that somebody else chose; written with 1024 characters at most
SpoolId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="made with the spool; another spool, another id")]
Sequence = Annotated[int, Field(ge=1, lt=2**63, description="of a record in its spool, from 1 without holes")]

# allowed and denied: by policy. refused: it never became a call (malformed, foreign origin, another caller's session).
Verdict = Literal["allowed", "denied", "refused"]
_REFUSED: Final = frozenset({"gateway:request:refused", "gateway:session:refused"})


class RecordedCaller(Message):
    """Who it was, as WireGuard proved it; `name` is the node's at that moment."""

    node: NodeId
    name: NodeName
    address: Address
    key: PublicKey


class ClaimedClient(Message):
    """What the client says of itself. Nobody verified it."""

    name: Claim
    version: Claim


class RecordedTrace(Message):
    """W3C trace context, as the caller sent it."""

    traceparent: Claim
    tracestate: Claim | None = None
    baggage: Claim | None = None


class RecordedCall(Message):
    """What was asked. `name`: the tool, prompt or resource; for kind http the path.

    `arguments_digest` is `sha256:HEX` of their canonical JSON (RFC 8785), or `sha256-body:HEX` of the body where they
    have none. `arguments` only where the service's audit rules say so, masked; `arguments_bytes` where they were too
    large. All but era, method and name are in the record of the decision only.
    """

    era: Literal["modern", "legacy", "http"]
    method: Claim
    name: Claim | None = None
    request_id: Claim | int | None = None
    arguments_digest: Annotated[str, Field(pattern=r"^sha256(-body)?:[0-9a-f]{64}$")] | None = None
    arguments: dict[str, JsonValue] | None = None
    arguments_bytes: Count | None = None
    client_unverified: ClaimedClient | None = None
    trace: RecordedTrace | None = None


class RecordDecision(Message):
    """`allow` names the grant that allowed it; `deny` is the code of the error that the caller got."""

    allow: Claim | None = None
    deny: int | None = None
    message: Claim | None = None
    grant_needed: Claim | None = None


class RecordOutcome(Message):
    """How it ended. `error`: the JSON-RPC error code of the answer; `problem`: what went wrong on the way."""

    status: Count
    bytes_in: Count
    bytes_out: Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    error: int | None = None
    problem: Claim | None = None


class CallRecord(Message):
    """One thing that happened, at `time` by the host's clock. Absent members are absent facts.

    Events of the trail itself have no service and no caller: `dropped` and `refused` count what was not recorded
    between `since` and `until` for want of room; `torn_bytes` were lost with a crash.
    """

    event: Annotated[str, Field(pattern=r"^gateway:[a-z]+:[a-z-]+$", max_length=64)]
    time: AwareDatetime
    id: Annotated[Text, Field(max_length=64)] | None = None
    service: ServiceName | None = None
    caller: RecordedCaller | None = None
    call: RecordedCall | None = None
    decision: RecordDecision | None = None
    outcome: RecordOutcome | None = None
    session: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{32}$")] | None = None
    detail: Claim | None = None
    dropped: Count | None = None
    refused: Count | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    torn_bytes: Count | None = None

    @property
    def verdict(self) -> Verdict | None:
        """What was decided; None for what is no decision, such as a gap."""
        if self.decision is not None:
            return "denied" if self.decision.deny is not None else "allowed"
        return "refused" if self.event in _REFUSED else None


Records = Annotated[tuple[CallRecord, ...], Field(min_length=1, max_length=MOST_RECORDS)]


class CallEntry(Message):
    """A record as the controller keeps it. `number` counts records in the order in which they reached it.

    `node` is the host whose gateway told, by its certificate; `received` is by the controller's clock. `claimed`:
    policy did not let that host serve the service that the record names, so only its word says that this happened.
    """

    number: int
    node: NodeId
    received: AwareDatetime
    claimed: bool = False
    record: CallRecord
