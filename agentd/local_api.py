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
from controller.wire.denials import Denial
from controller.wire.netmap import NodeId

from .gateway_messages import (
    Certified,
    CertifyRequest,
    GatewayRequest,
    GatewayStatus,
    Listening,
    ListenRequest,
    Policy,
    RecordsKept,
    RecordsRequest,
    ServiceStatus,
    ServingReport,
)
from .path_messages import Netcheck, NetcheckRequest, Paths, PathsRequest, PingRequest, Pong

__all__ = [
    "GATEWAY_ONLY",
    "LARGEST_REQUEST",
    "PRIVILEGED",
    "Answer",
    "ControllerStatus",
    "Denied",
    "DeniedRequest",
    "Diff",
    "DiffRequest",
    "Failure",
    "HidingChain",
    "Identity",
    "LeaveRequest",
    "Left",
    "PeerStatus",
    "Peers",
    "PeersRequest",
    "Request",
    "RotateKeyRequest",
    "Rotated",
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


class RotateKeyRequest(Message):
    """Replace the WireGuard key."""

    request: Literal["rotate-key"] = "rotate-key"


class LeaveRequest(Message):
    """Leave the mesh, remove everything, stop. `force`: also when the controller cannot be told."""

    request: Literal["leave"] = "leave"
    force: bool = False


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


class Rotated(Message):
    """The answer to RotateKeyRequest."""

    answer: Literal["rotated"] = "rotated"
    public_key: PublicKey


class Left(Message):
    """The answer to LeaveRequest. `told` is False when the controller still lists the node."""

    answer: Literal["left"] = "left"
    told: bool
    done: tuple[str, ...]


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
