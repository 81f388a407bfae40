"""What a host knows of the network that it is in: as it reports it, and as REST and `agentd netcheck` show it."""

from typing import Annotated, Final, Literal

from pydantic import Field

from .base import Endpoint, Message, NodeName, Text
from .netmap import NodeId

__all__ = [
    "MOST_CANDIDATES",
    "MOST_RELAYS",
    "Candidate",
    "HostNetcheck",
    "MappedPort",
    "MappingProtocol",
    "MappingState",
    "NatKind",
    "NetcheckReport",
    "RelayDistance",
    "UdpState",
]

MOST_CANDIDATES: Final = 50
MOST_RELAYS: Final = 50

NatKind = Literal["none", "endpoint-independent", "endpoint-dependent", "unknown"]
UdpState = Literal["works", "no answer", "not asked"]
MappingProtocol = Literal["pcp", "nat-pmp", "upnp"]
MappingState = Literal["off", "not needed", "asking", "none", "not seen", "mapped"]


class MappedPort(Message):
    """The port of a router that leads to the host's WireGuard port.

    `off`: port_mapping is false; `not needed`: no NAT is in between; `none`: no router gives one, see `problem`;
    `not seen`: one gave `endpoint`, but nobody sees the host at that address, so a further NAT is in between and peers
    are not told; `mapped`: peers are told.
    """

    state: MappingState
    protocol: MappingProtocol | None = None
    endpoint: Endpoint | None = None
    problem: Annotated[Text, Field(max_length=500)] | None = None


class Candidate(Message):
    """Where peers may look for the host. `host`: at an address of its own; `nat`: where STUN sees it; `router`: at the
    port that its router gave; `relay`: behind a relay."""

    kind: Literal["host", "nat", "router", "relay"]
    endpoint: Endpoint


class RelayDistance(Message):
    """A relay that the host may use. `chosen`: peers find the host behind it, first behind the nearest."""

    node: NodeId
    rtt: Annotated[float | None, Field(ge=0, description="seconds; None: it does not answer")] = None
    chosen: bool = False


class NetcheckReport(Message):
    """From where the host is seen, and what is in between. Relays: those that it chose first."""

    nat: NatKind
    udp: UdpState
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=MOST_CANDIDATES)] = ()
    mapping: MappedPort
    relays: Annotated[tuple[RelayDistance, ...], Field(max_length=MOST_RELAYS)] = ()
    remembered: Annotated[
        float | None, Field(ge=0, description="seconds, at least, that the NAT remembers a silent flow")
    ] = None


class HostNetcheck(Message):
    """GET /netchecks: one host. Without a `netcheck`, `state` says why: `silent`, connected here, it has not told yet;
    `elsewhere`, it told another controller of the mesh."""

    node: NodeId
    name: NodeName
    state: Literal["reported", "silent", "elsewhere", "offline"]
    netcheck: NetcheckReport | None = None
