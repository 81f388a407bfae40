"""Resources of the REST API under `/api/v1`: what the routers answer and the typed client reads.

Times are UTC, RFC 3339 on the wire. Lists are pages: `?limit=` (1-500, default 100), `?cursor=` from the page before.
Errors are `Problem` (RFC 9457). Everything that can be edited carries an ETag of its `revision`.
"""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from .base import Address, Endpoint, Message, NodeName, PublicKey, Revision, Tag, Text, UserName
from .netmap import Mesh, NodeId

__all__ = [
    "AccessChange",
    "AdminRole",
    "AdminToken",
    "AdminTokenCreate",
    "AdminTokenCreated",
    "AuditEntry",
    "DeniedCount",
    "EnrolmentKey",
    "EnrolmentKeyCreate",
    "EnrolmentKeyCreated",
    "ExplainedGrant",
    "ExplainedHost",
    "Explanation",
    "GrantCount",
    "Health",
    "KernelVerdict",
    "MeshStatus",
    "Node",
    "NodePatch",
    "NodeState",
    "Page",
    "PeerConfig",
    "PolicyCounters",
    "PolicyDifference",
    "PolicyDocument",
    "PolicyFinding",
    "PolicyReport",
    "PolicyWrite",
    "Problem",
    "StaticPeerCreate",
]

T = TypeVar("T")
NodeState = Literal["pending", "active", "disabled"]
AdminRole = Literal["admin", "member", "read"]


class Page(Message, Generic[T]):
    """One page; `next` is the cursor of the following one, None at the end."""

    items: tuple[T, ...]
    next: str | None = None


class Problem(Message):
    """RFC 9457. `type` is stable (`urn:wardmesh:problem:…`), `detail` names the value and the remedy."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: tuple[dict[str, Any], ...] = ()


class EnrolmentKeyCreate(Message):
    """POST /enrolment-keys."""

    tags: tuple[Tag, ...] = ()
    uses: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(default=1, description="None for no limit")
    ttl: Annotated[int, Field(ge=1, le=366 * 86400)] = Field(default=3600, description="seconds")
    ephemeral: bool = Field(default=False, description="its nodes are removed when they stay away")
    approved: bool = Field(default=True, description="False: each node waits for an admin's approval")
    note: Annotated[Text, Field(max_length=200)] = ""


class EnrolmentKey(Message):
    """A key as the controller remembers it: its public prefix, never the key."""

    id: str
    prefix: str
    tags: tuple[Tag, ...]
    uses: int | None
    used: int
    ephemeral: bool
    approved: bool
    note: str
    created: datetime
    expires: datetime
    revoked: datetime | None = None


class EnrolmentKeyCreated(Message):
    """The only time that the key and its join string are shown."""

    key: EnrolmentKey
    join: str = Field(repr=False)


class Node(Message):
    """A member of the mesh: a host with agentd, or a static peer.

    `in_force` is the revision that the host's kernel has; `online` means that its stream is open now; `behind`, that
    something which concerns it is not in force there yet, and `lag`, for how long.
    """

    id: NodeId
    name: NodeName
    kind: Literal["agent", "static"]
    state: NodeState
    tags: tuple[Tag, ...]
    addresses: tuple[Address, ...]
    public_key: PublicKey
    endpoints: tuple[Endpoint, ...] = ()
    ephemeral: bool = False
    online: bool = False
    behind: bool = False
    lag: float | None = Field(
        default=None, ge=0, description="seconds since the oldest change that is not in force there; null: not behind"
    )
    in_force: Revision | None = None
    error: str | None = None
    backend: Literal["kernel", "userspace"] | None = None
    agent_version: str | None = None
    created: datetime
    last_seen: datetime | None = None
    revision: Revision


class NodePatch(Message):
    """PATCH /nodes/{id}, with If-Match. Absent fields stay."""

    name: NodeName | None = None
    tags: tuple[Tag, ...] | None = None
    state: Literal["active", "disabled"] | None = Field(default=None, description="active approves or enables")
    endpoints: tuple[Endpoint, ...] | None = Field(default=None, description="static peers only")


class StaticPeerCreate(Message):
    """POST /static-peers: anything that speaks WireGuard but runs no agentd."""

    name: NodeName
    public_key: PublicKey
    tags: tuple[Tag, ...] = ()
    addresses: tuple[Address, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


class PeerConfig(Message):
    """GET /static-peers/{id}/config: a wg-quick file without the private key, which never reaches the controller."""

    node: NodeId
    wg_quick: str


class PolicyDocument(Message):
    """GET /policy: the text in force, as it was written. Revision 0 with no text: nothing is allowed."""

    revision: Revision
    text: str
    applied: datetime | None = None
    actor: str | None = None


class PolicyWrite(Message):
    """PUT /policy (If-Match) and POST /policy/check: YAML or JSON."""

    text: Annotated[Text, Field(max_length=4 * 1024 * 1024)]


class PolicyFinding(Message):
    """One error or warning, with its place in the text (1-based)."""

    severity: Literal["error", "warning"]
    code: str
    message: str
    line: int | None = None
    column: int | None = None


class PolicyReport(Message):
    """What checking a document found. `ok` means that applying it would be accepted."""

    ok: bool
    findings: tuple[PolicyFinding, ...] = ()
    grants: int = 0
    tests: int = 0


class AdminTokenCreate(Message):
    """POST /tokens."""

    note: Annotated[Text, Field(max_length=200)] = ""
    role: AdminRole = "admin"
    user: UserName | None = Field(default=None, description="whose it is; the policy's tag owners name users")
    ttl: Annotated[int, Field(ge=1, le=366 * 86400)] | None = Field(default=None, description="seconds; None: no end")

    @model_validator(mode="after")
    def _member_is_somebody(self) -> "AdminTokenCreate":
        if self.role == "member" and self.user is None:
            raise ValueError("a token of role 'member' needs a user: what it may do depends on whose it is")
        return self


class AdminToken(Message):
    """A token as the controller remembers it: its public prefix, never the token."""

    id: str
    prefix: str
    role: AdminRole
    user: UserName | None = None
    note: str
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None


class AdminTokenCreated(Message):
    """The only time that the token is shown."""

    token: AdminToken
    secret: str = Field(repr=False, description="wma_…")


class AccessChange(Message):
    """One pair whose access a document would change: two nodes, or a node and a gateway service (`svc:NAME`).

    Entries are written as in `ip` of a grant; of services, also the calls: `tool get_file (path under /project-x)`.
    """

    source: NodeName
    destination: Annotated[str, Field(pattern=r"^(svc:)?[a-z0-9-]{1,63}$")]
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class PolicyDifference(Message):
    """POST /policy/diff: what the document would change for the active nodes, against the policy in force.

    `pairs` counts all changes; `changes` holds the first of them, by source and destination.
    """

    changes: tuple[AccessChange, ...]
    pairs: int


class ExplainedGrant(Message):
    """A grant that allows what was asked: with its place in the document in force (1-based), or a temporary one.

    A temporary grant has no place; `actor` made it, and its `note` is the reason that was given.
    """

    id: str
    line: int | None = None
    column: int | None = None
    note: str = ""
    expires: datetime | None = None
    actor: str | None = None


class KernelVerdict(Message):
    """What a host found in its kernel when it was asked a moment ago: all tables, ours and others', both ways.

    `passes` None: it depends on another program's rule that cannot be read, or could not be told; `why` says so.
    `grant`: by which our own table lets it pass.
    """

    passes: bool | None
    revision: Revision | None = None
    grant: str | None = None
    why: str = ""


class ExplainedHost(Message):
    """What one of the two hosts has. `allows` is by the map that the controller holds for it; `current` means that its
    kernel has that map in force, and not an older one (`in_force`); `kernel` is what the host itself read back, None
    when it gave no answer."""

    name: NodeName
    state: NodeState
    online: bool
    in_force: Revision | None
    current: bool
    allows: bool
    error: str | None = None
    kernel: KernelVerdict | None = None


class GrantCount(Message):
    """Packets that hosts accepted by a grant, since each wrote its table whole."""

    grant: str
    accepted: int
    hosts: dict[NodeName, int]


class DeniedCount(Message):
    """Packets that a host denied, by where: `in`, `out`, `forward`, `spoofed`, `leaked`."""

    node: NodeName
    denied: dict[str, int]


class PolicyCounters(Message):
    """GET /policy/counters: what the kernels of the hosts that are online have counted, read a moment ago.

    `silent`: hosts that are online and gave no answer in time, so that their packets are not in the counts.
    """

    grants: tuple[GrantCount, ...]
    denied: tuple[DeniedCount, ...]
    asked: int
    silent: tuple[NodeName, ...] = ()


class Explanation(Message):
    """GET /policy/explain: may `source` open this flow to `destination`, by which grants, and who enforces it."""

    source: ExplainedHost
    destination: ExplainedHost
    flow: str
    allowed: bool
    grants: tuple[ExplainedGrant, ...] = ()
    policy_revision: Revision


class AuditEntry(Message):
    """One mutation. `hash` is SHA-256 over the previous entry's hash and this entry's RFC 8785 canonical JSON."""

    seq: int
    time: datetime
    actor: str
    action: str
    subject: str
    old: Any = None
    new: Any = None
    previous: str
    hash: str


class Health(Message):
    """GET /health, without authentication."""

    status: Literal["ok", "degraded"]
    version: str
    detail: str = ""


class MeshStatus(Message):
    """GET /status."""

    mesh: Mesh
    version: str
    revision: Revision
    nodes: int
    online: int
    pending: int
    behind: int = Field(description="online nodes whose kernel does not have the newest revision that concerns them")
    lag: float | None = Field(
        default=None, ge=0, description="the longest lag of those, in seconds; null: none is behind"
    )
    policy_revision: Revision
    addresses_used: int
    addresses_total: int
