"""Who uses which relay, and for whom it passes packets on: what a relay answers, and resources of `/api/v1/relays`."""

from typing import Annotated, Final

from pydantic import Field

from .base import Message, NodeName
from .netmap import NodeId

__all__ = ["MOST_PAIRS", "MeshRelay", "PairCount", "RelayDetail", "RelayUser", "Relayed", "RelayedPair"]

MOST_PAIRS: Final = 500

_Count = Annotated[int, Field(ge=0)]


class PairCount(Message):
    """What a relay passed on from one host to another, as sealed packets; their bytes with the headers of IPv6 and UDP.

    A pair is forgotten an hour after its last packet.
    """

    source: NodeId
    destination: NodeId
    packets: _Count
    bytes: _Count


class Relayed(Message):
    """A relay's answer. `pairs`: of all its `count`, those with the most bytes. `rate`: megabytes a second that each
    host may send through it, 0 without a limit. `problem`: why it passes on nothing."""

    pairs: Annotated[tuple[PairCount, ...], Field(max_length=MOST_PAIRS)] = ()
    count: _Count = 0
    rate: _Count = 0
    problem: Annotated[str, Field(max_length=1000)] | None = None


class MeshRelay(Message):
    """A host that relays. `homes`: how many hosts are found behind it first, `spares`: second, by their own reports."""

    id: NodeId
    name: NodeName
    region: str
    online: bool
    homes: int
    spares: int


class RelayUser(Message):
    """A host that is found behind the relay. `spare`: only when its first one does not answer."""

    name: NodeName
    spare: bool
    rtt: Annotated[float | None, Field(description="seconds, from the host to the relay")] = None


class RelayedPair(Message):
    """As PairCount, by name (by id for a node that is gone)."""

    source: str
    destination: str
    packets: int
    bytes: int


class RelayDetail(MeshRelay):
    """GET /relays/{name}. What its kernel counted was asked a moment ago: `answered` False when there was no answer.

    `limited`: packets dropped because a host sent more than `rate` megabytes a second (0: no limit), `refused`: because
    no grant connects the two hosts, or they were not WireGuard's; both since its table was last written whole.
    """

    users: tuple[RelayUser, ...] = ()
    answered: bool
    pairs: tuple[RelayedPair, ...] = ()
    pair_count: int = 0
    rate: int | None = None
    limited: int | None = None
    refused: int | None = None
    problem: str | None = None
