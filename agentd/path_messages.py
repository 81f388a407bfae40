"""The local API's messages about paths: what `agentd paths`, `agentd ping` and `agentd netcheck` ask, and its answers.

No answer contains a secret. Knows nothing of how paths are found.
"""

from typing import Annotated, Literal

from pydantic import Field

from controller.wire.base import Endpoint, Message, NodeName
from controller.wire.netcheck import MappedPort, NatKind, UdpState
from controller.wire.netmap import NodeId
from controller.wire.paths import PathKind

__all__ = [
    "Netcheck",
    "NetcheckRequest",
    "PathStatus",
    "Paths",
    "PathsRequest",
    "PeerPaths",
    "PingRequest",
    "Pong",
    "RelayStatus",
    "StunServer",
]


class PathsRequest(Message):
    """By which ways are the peers reached?"""

    request: Literal["paths"] = "paths"


class NetcheckRequest(Message):
    """From where is this host seen, and what is in between?"""

    request: Literal["netcheck"] = "netcheck"


class PingRequest(Message):
    """Ask a peer once, by the way that WireGuard uses now. `peer`: its name, full name, id or one of its addresses."""

    request: Literal["ping"] = "ping"
    peer: Annotated[str, Field(min_length=1, max_length=300)]
    timeout: Annotated[float, Field(gt=0, le=10)] = 2.0


class PathStatus(Message):
    """One endpoint of a peer as it was found. `learned`: only the peer's own questions told of it.

    `relay`: the relay that it is behind.
    """

    endpoint: Endpoint
    state: Literal["trying", "working", "doubted", "silent"]
    rtt: float | None = Field(default=None, description="seconds, of the last answer")
    chosen: bool = False
    learned: bool = False
    relay: NodeName | None = None


class PeerPaths(Message):
    """The ways to a peer. `endpoint`: where WireGuard sends to now."""

    id: NodeId
    name: NodeName
    endpoint: str | None = None
    mtu: int | None = Field(default=None, description="bytes of the largest packet that passes; None: not known yet")
    paths: tuple[PathStatus, ...] = ()


class Paths(Message):
    """The answer to PathsRequest, by the map in force. A static peer has no agentd that would answer: no paths."""

    answer: Literal["paths"] = "paths"
    peers: tuple[PeerPaths, ...]


class StunServer(Message):
    """Who was asked from where this host is seen. `mapped`: what it said; None: it does not answer."""

    server: Endpoint
    mapped: Endpoint | None = None
    rtt: float | None = Field(default=None, description="seconds")


class RelayStatus(Message):
    """A relay that this host may use. `chosen`: peers find this host behind it."""

    name: NodeName
    region: str
    rtt: float | None = Field(default=None, description="seconds; None: it does not answer")
    chosen: bool = False


class Netcheck(Message):
    """The answer to NetcheckRequest."""

    answer: Literal["netcheck"] = "netcheck"
    nat: NatKind
    udp: UdpState
    candidates: tuple[Endpoint, ...] = Field(description="the host's own endpoints, as peers hear of them")
    reflexive: tuple[Endpoint, ...] = Field(description="where it is seen, if that is elsewhere")
    servers: tuple[StunServer, ...] = ()
    mapping: MappedPort
    remembered: float | None = Field(
        default=None, description="seconds, at least, that the NAT remembers a silent flow; None: not measured"
    )
    relays: tuple[RelayStatus, ...] = Field(default=(), description="those that it chose first")
    listen_port: int


class Pong(Message):
    """The answer to PingRequest. `endpoint`: whom WireGuard sends to now, and who was asked; None: nobody known yet.

    `path`: as in `wardmesh path list`. `relay`: the one that it leads by.
    """

    answer: Literal["pong"] = "pong"
    id: NodeId
    name: NodeName
    endpoint: str | None = None
    path: PathKind = "none"
    relay: NodeName | None = None
    rtt: float | None = Field(default=None, description="seconds; None: no answer in time")
    handshake_age: float | None = Field(default=None, description="seconds since WireGuard's last handshake")
