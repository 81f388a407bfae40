"""The values that the controller's domain modules exchange: what the store loads and the mesh is computed from.

They are not wire messages (no host sees them) and not rows (no SQL here).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import JsonValue

from controller.wire.base import Address, Endpoint, NodeName, PublicKey, Tag
from controller.wire.mcp import ServiceName
from controller.wire.netmap import Mesh, NodeId
from controller.wire.rest import NodeState

__all__ = [
    "ENDED_KEPT",
    "Change",
    "Fleet",
    "NodeRecord",
    "PastChange",
    "PolicyRecord",
    "ServiceRecord",
    "TemporaryGrant",
]

# Seconds for which an ended temporary grant is kept: when a clock that was a day fast is put back, it has not ended.
ENDED_KEPT: Final = 2 * 86400


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node as every other part of the controller sees it. Only `active` nodes occur in anybody's map."""

    id: NodeId
    name: NodeName
    kind: Literal["agent", "static"]
    state: NodeState
    tags: frozenset[Tag]
    addresses: tuple[Address, ...]
    public_key: PublicKey
    endpoints: tuple[Endpoint, ...] = ()
    behind_nat: bool = False  # the controller saw it at an address that it does not have: its peers get a keepalive
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """The policy in force, as written. Empty text allows nothing."""

    revision: int
    text: str


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A gateway service's place in the mesh: its own addresses, and who holds them. What it is, the policy says.

    `holder` may be a node that may not serve it any more: then nobody holds the addresses until that is mended.
    """

    name: ServiceName
    addresses: tuple[Address, ...]
    holder: NodeId | None = None


@dataclass(frozen=True, slots=True)
class TemporaryGrant:
    """A grant beside the policy document, until `expires` (whole seconds since the epoch).

    `from_`, `to` and `ip` are entries as in a document's grant, each selector with its kind; `mcp` is its part of that
    name, as JSON; None: it says nothing about calls. `actor` made it.
    """

    id: str
    from_: tuple[str, ...]
    to: tuple[str, ...]
    ip: tuple[str, ...]
    reason: str
    actor: str
    expires: int
    mcp: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One committed mutation: produced by the store at commit, consumed by the mesh.

    It states the present value of each object that changed (None: removed), so applying it twice is harmless and
    two can be merged by keeping the later value of each object.
    """

    revision: int
    nodes: Mapping[NodeId, NodeRecord | None] = field(default_factory=dict)
    policy: PolicyRecord | None = None
    services: Mapping[ServiceName, ServiceRecord | None] = field(default_factory=dict)
    grants: Mapping[str, TemporaryGrant | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PastChange:
    """What a mutation of before was about, without values. `rules`: the policy document or a temporary grant.

    `time`: seconds since the epoch, by the clock of the controller that wrote it.
    """

    revision: int
    time: float
    nodes: tuple[NodeId, ...] = ()
    services: tuple[ServiceName, ...] = ()
    rules: bool = False


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything the mesh is computed from, at one revision. `grants`: the temporary ones that may be in force.

    `past`: the last changes up to that revision, oldest first, without gaps. `ended`: when the last temporary grant
    ended by its time.
    """

    revision: int
    mesh: Mesh
    nodes: Mapping[NodeId, NodeRecord]
    policy: PolicyRecord
    services: Mapping[ServiceName, ServiceRecord] = field(default_factory=dict)
    grants: Mapping[str, TemporaryGrant] = field(default_factory=dict)
    past: Sequence[PastChange] = ()
    ended: float | None = None
