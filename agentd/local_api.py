"""The local API's messages: what `agentd status` and other programs on this host may ask the daemon.

One JSON object a line in each direction over a Unix stream socket, as many as the client likes; each request is
answered once, in order, with its answer or with `Failure`. A `GatewayRequest` makes the connection the gateway's: from
then on a `Policy` comes whenever there is another, and the gateway says how it is with `ServingReport`, which nothing
answers. No answer contains a secret.
"""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from controller.wire.base import Address, Endpoint, Message, NodeName, PublicKey, Revision, Tag
from controller.wire.call_records import Records, Sequence, SpoolId
from controller.wire.denials import Denial
from controller.wire.mcp import GatewayPolicy, ServiceName
from controller.wire.netmap import NodeId

from .path_messages import Netcheck, NetcheckRequest, Paths, PathsRequest, PingRequest, Pong

__all__ = [
    "GATEWAY_ONLY",
    "LARGEST_REQUEST",
    "PRIVILEGED",
    "Answer",
    "Certified",
    "CertifyRequest",
    "ControllerStatus",
    "Denied",
    "DeniedRequest",
    "Diff",
    "DiffRequest",
    "Failure",
    "GatewayRequest",
    "GatewayStatus",
    "HidingChain",
    "Identity",
    "LeaveRequest",
    "Left",
    "ListenRequest",
    "Listening",
    "PeerStatus",
    "Peers",
    "PeersRequest",
    "Policy",
    "RecordsKept",
    "RecordsRequest",
    "Request",
    "RotateKeyRequest",
    "Rotated",
    "ServiceStatus",
    "ServingReport",
    "Status",
    "StatusRequest",
    "WhoisRequest",
    "answer_type",
    "request_type",
]

LARGEST_REQUEST: Final = 256 * 1024  # bytes; records of calls are the largest


class StatusRequest(Message):
    """How is this host?"""

    request: Literal["status"] = "status"


class PeersRequest(Message):
    """Which peers does the kernel have?"""

    request: Literal["peers"] = "peers"


class WhoisRequest(Message):
    """Who has this mesh address?"""

    request: Literal["whois"] = "whois"
    address: Address


class DiffRequest(Message):
    """What would be changed now, if anything?"""

    request: Literal["diff"] = "diff"


class DeniedRequest(Message):
    """Which packets were denied in the last hour?"""

    request: Literal["denied"] = "denied"


class RecordsRequest(Message):
    """Tell the controller what a gateway recorded; `first` is the number of the first record in its spool.

    The answer comes when the controller has them, or Failure when it is away: then they are sent again, later.
    """

    request: Literal["records"] = "records"
    spool: SpoolId
    first: Sequence
    records: Records


class RotateKeyRequest(Message):
    """Replace the WireGuard key."""

    request: Literal["rotate-key"] = "rotate-key"


class LeaveRequest(Message):
    """Leave the mesh, remove everything, stop. `force`: also when the controller cannot be told."""

    request: Literal["leave"] = "leave"
    force: bool = False


class GatewayRequest(Message):
    """What is the gateway to do? Answered with `Policy` now, and whenever it is another one, until it hangs up.

    `worker`: which of the gateway's processes asks; the first, 0, says how the services are.
    """

    request: Literal["gateway"] = "gateway"
    worker: Annotated[int, Field(ge=0, le=255)] = 0


class ServingReport(Message):
    """Said by the gateway's first process: None for a service that can answer, or why it cannot.

    `without_tls`: why services that should answer over TLS as well do not.
    """

    request: Literal["serving"] = "serving"
    services: dict[ServiceName, Annotated[str, Field(max_length=1000)] | None]
    without_tls: dict[ServiceName, Annotated[str, Field(max_length=1000)]] = Field(default_factory=dict)


class ListenRequest(Message):
    """A socket that listens at this address and port of a service, which only agentd may bind (below 1024).

    Its descriptor comes with the answer. `processes` of the gateway share the address.
    """

    request: Literal["listen"] = "listen"
    service: ServiceName
    address: Address
    port: Annotated[int, Field(ge=1, le=65535)]
    processes: Annotated[int, Field(ge=1, le=256)] = 1


class CertifyRequest(Message):
    """Have the controller sign a certificate for a service; the key of the CSR (PEM) stays with who asks."""

    request: Literal["certify"] = "certify"
    service: ServiceName
    csr: Annotated[str, Field(max_length=16 * 1024)]


Request = Annotated[
    StatusRequest
    | PeersRequest
    | WhoisRequest
    | DiffRequest
    | DeniedRequest
    | PathsRequest
    | NetcheckRequest
    | PingRequest
    | RecordsRequest
    | RotateKeyRequest
    | LeaveRequest
    | GatewayRequest
    | ServingReport
    | ListenRequest
    | CertifyRequest,
    Field(discriminator="request"),
]
# For root and the daemon's own user; the others are for whoever may open the socket.
PRIVILEGED: Final = (RotateKeyRequest, LeaveRequest)
# For those and the gateway's user: who says how a service is, gets its socket or records its calls stands in for it.
GATEWAY_ONLY: Final = (GatewayRequest, ListenRequest, CertifyRequest, RecordsRequest)


class ControllerStatus(Message):
    """The connection. `phase` is `agentd.session.Phase`; `error` is the last one, None while connected."""

    url: str
    phase: str
    since: datetime
    connected: datetime | None = None
    error: str | None = None
    retry: datetime | None = None


class PeerStatus(Message):
    """A peer of the map, with what the kernel knows of it. Bytes are those inside and around WireGuard's packets."""

    id: NodeId
    name: NodeName
    addresses: tuple[Address, ...]
    public_key: PublicKey
    kind: Literal["agent", "static"]
    endpoint: str | None = Field(default=None, description="where the kernel sends to now")
    handshake: datetime | None = Field(default=None, description="when the last handshake ended")
    handshake_age: float | None = Field(default=None, description="seconds since then")
    received: int = 0
    sent: int = 0
    applied: bool = Field(default=True, description="False: the kernel does not have it")


class HidingChain(Message):
    """A chain of another program's nftables table that drops, or sends elsewhere, what the mesh needs.

    `hook` is that of the base chain that leads there; `by_policy`: its policy does it, because no rule accepts.
    `certain` False: it depends on a condition that agentd cannot read. `packets` is what the rule's own counter has, of
    any packets, None without one.
    """

    family: str
    table: str
    chain: str
    hook: str
    effect: Literal["drop", "divert"]
    by_policy: bool
    certain: bool
    packets: int | None = None
    traffic: tuple[str, ...]


class ServiceStatus(Message):
    """A service that this host may serve. `held`: it is this host that answers for its addresses now."""

    name: ServiceName
    fqdn: str
    kind: Literal["mcp", "http"]
    addresses: tuple[Address, ...]
    port: int
    tls_port: int | None = None
    upstream: str = Field(description="where calls go: an URL, or the command that is run")
    held: bool
    error: str | None = Field(default=None, description="why it cannot answer; None: it can")
    tls_error: str | None = Field(default=None, description="why it cannot answer over TLS, though it can otherwise")


class GatewayStatus(Message):
    """The process that serves. `started_by`: agentd itself, or somebody else, as its systemd unit."""

    started_by: Literal["agentd", "unit"]
    connected: bool
    processes: tuple[int, ...] = Field(default=(), description="ids of those that are connected")
    error: str | None = Field(default=None, description="why agentd could not keep it running")


class Status(Message):
    """Everything that `agentd status` shows."""

    answer: Literal["status"] = "status"
    version: str
    process: int
    started: datetime
    mesh: NodeName
    mesh_id: str
    prefixes: tuple[str, ...]
    ca: str = Field(default="", description="PEM: what clients of services trust when these answer over TLS")
    node: NodeId
    name: NodeName
    addresses: tuple[Address, ...]
    tags: tuple[Tag, ...] = ()
    public_key: PublicKey
    endpoints: tuple[Endpoint, ...]
    controller: ControllerStatus
    map: Literal["none", "saved", "current", "denied"] = Field(
        description="none yet; from the disk; from the controller; emptied because the node was removed or disabled"
    )
    desired: Revision | None = None
    in_force: Revision | None = None
    error: str | None = Field(default=None, description="why `desired` is not in force")
    save_error: str | None = Field(default=None, description="why the map in force is not on disk")
    notices: tuple[str, ...] = ()
    hidden_by: tuple[HidingChain, ...] = Field(
        default=(), description="chains of other programs that keep from passing what the map in force allows"
    )
    certificate_until: datetime
    renewal: datetime
    link: str
    listen_port: int
    backend: Literal["kernel", "userspace"]
    firewall: bool = Field(description="the nftables table is in force")
    rules: int = 0
    accepted: dict[str, int] = Field(
        default_factory=dict, description="packets by grant, since the table was last written whole"
    )
    denied: dict[str, int] = Field(
        default_factory=dict, description="packets by where: in, out, forward, spoofed, leaked; since then, too"
    )
    drifts: int = Field(default=0, description="times that somebody changed what agentd made")
    peers: tuple[PeerStatus, ...] = ()
    services: tuple[ServiceStatus, ...] = Field(default=(), description="those that this host may serve")
    names: dict[str, tuple[Address, ...]] = Field(
        default_factory=dict, description="the services that this host may call, by full name"
    )
    gateway: GatewayStatus | None = Field(default=None, description="None: nothing is to be served here")


class Peers(Message):
    """The answer to PeersRequest."""

    answer: Literal["peers"] = "peers"
    peers: tuple[PeerStatus, ...]


class Identity(Message):
    """The answer to WhoisRequest, from the map in force. `addresses` are the node's own, without those it holds."""

    answer: Literal["identity"] = "identity"
    address: Address
    addresses: tuple[Address, ...] = ()
    node: NodeId
    name: NodeName
    fqdn: str
    tags: tuple[Tag, ...]
    public_key: PublicKey
    kind: Literal["agent", "static"]
    is_self: bool


class Diff(Message):
    """The answer to DiffRequest: one line an operation; none when the kernel is as it should be."""

    answer: Literal["diff"] = "diff"
    operations: tuple[str, ...]


class Denied(Message):
    """The answer to DeniedRequest: oldest minute first."""

    answer: Literal["denied"] = "denied"
    denied: tuple[Denial, ...]


class RecordsKept(Message):
    """The answer to RecordsRequest: the controller keeps the spool's records up to number `through`."""

    answer: Literal["records-kept"] = "records-kept"
    through: int


class Rotated(Message):
    """The answer to RotateKeyRequest."""

    answer: Literal["rotated"] = "rotated"
    public_key: PublicKey


class Left(Message):
    """The answer to LeaveRequest. `told` is False when the controller still lists the node."""

    answer: Literal["left"] = "left"
    told: bool
    done: tuple[str, ...]


class Policy(Message):
    """What the gateway enforces from now on. Of a service's addresses, those that this host holds."""

    answer: Literal["policy"] = "policy"
    policy: GatewayPolicy


class Listening(Message):
    """The answer to ListenRequest; the listening socket comes with it (SCM_RIGHTS)."""

    answer: Literal["listening"] = "listening"


class Certified(Message):
    """The answer to CertifyRequest: the certificate (PEM)."""

    answer: Literal["certified"] = "certified"
    certificate: str


class Failure(Message):
    """The request was not done, and why: one sentence."""

    answer: Literal["failure"] = "failure"
    error: str


Answer = Annotated[
    Status
    | Peers
    | Paths
    | Netcheck
    | Pong
    | Identity
    | Diff
    | Denied
    | RecordsKept
    | Rotated
    | Left
    | Policy
    | Listening
    | Certified
    | Failure,
    Field(discriminator="answer"),
]

request_type: TypeAdapter[Request] = TypeAdapter(Request)
answer_type: TypeAdapter[Answer] = TypeAdapter(Answer)
