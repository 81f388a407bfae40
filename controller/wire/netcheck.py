"""What a host knows of the network that it is in: as it reports it, and as REST and `agentd netcheck` show it."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Endpoint, Message, Text

__all__ = ["MappedPort", "MappingProtocol", "MappingState", "NatKind", "UdpState"]

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
