"""What the store hands out and takes: frozen values, no rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import JsonValue

from controller.records import NodeRecord, ServiceRecord, TemporaryGrant
from controller.wire.base import Address, Endpoint, NodeName, PublicKey, Tag
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId
from controller.wire.rest import AdminRole, NodeState

__all__ = ["NodeFilter", "StoredGrant", "StoredKey", "StoredNode", "StoredPolicy", "StoredService", "StoredToken"]


@dataclass(frozen=True, slots=True)
class StoredNode:
    """A node with everything the controller remembers of it.

    `number` is its host number and `addresses` what that means in this mesh. `reported` endpoints are the host's (or
    the admin's) own; `observed` is where the controller sees it. `revision` is that of its last change.
    """

    id: NodeId
    name: NodeName
    kind: Literal["agent", "static"]
    state: NodeState
    tags: frozenset[Tag]
    number: int
    addresses: tuple[Address, ...]
    public_key: PublicKey
    created: datetime
    identity: str | None = None
    enrolment_key: str | None = None
    reported: tuple[Endpoint, ...] = ()
    observed: Endpoint | None = None
    behind_nat: bool = False
    ephemeral: bool = False
    revision: int = 0
    last_seen: datetime | None = None
    agent_version: str | None = None
    backend: Literal["kernel", "userspace"] | None = None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Candidates, best first. Where the host was seen from outside is where most peers are."""
        return _distinct([*([self.observed] if self.observed else []), *self.reported])

    @property
    def record(self) -> NodeRecord:
        """The node as the mesh sees it."""
        return NodeRecord(
            id=self.id,
            name=self.name,
            kind=self.kind,
            state=self.state,
            tags=self.tags,
            addresses=self.addresses,
            public_key=self.public_key,
            endpoints=self.endpoints,
            behind_nat=self.behind_nat,
            ephemeral=self.ephemeral,
        )


def _distinct(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    return tuple(dict.fromkeys(endpoints))


@dataclass(frozen=True, slots=True)
class NodeFilter:
    """Which nodes a list shows; None does not restrict."""

    name: NodeName | None = None
    tag: Tag | None = None
    state: NodeState | None = None
    kind: Literal["agent", "static"] | None = None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An enrolment key. `hash` is the SHA-256 (hex) of the key, which is not kept."""

    id: str
    prefix: str
    hash: str = field(repr=False)
    tags: tuple[Tag, ...]
    uses: int | None
    used: int
    ephemeral: bool
    approved: bool
    note: str
    created: datetime
    expires: datetime
    revoked: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredToken:
    """An admin token. `hash` is the SHA-256 (hex) of the token, which is not kept."""

    id: str
    prefix: str
    hash: str = field(repr=False)
    role: AdminRole
    note: str
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy document that is or was in force."""

    revision: int
    text: str
    applied: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class StoredService:
    """A gateway service's place in the mesh. `since`: when it got its holder, or lost the last one."""

    name: ServiceName
    number: int
    addresses: tuple[Address, ...]
    holder: NodeId | None
    since: datetime
    revision: int = 0

    @property
    def record(self) -> ServiceRecord:
        """The service as the mesh sees it."""
        return ServiceRecord(self.name, self.addresses, self.holder)


@dataclass(frozen=True, slots=True)
class StoredGrant:
    """A temporary grant, also one that has ended. `expires` is in whole seconds; `actor` made it."""

    id: str
    from_: tuple[str, ...]
    to: tuple[str, ...]
    ip: tuple[str, ...]
    reason: str
    actor: str
    created: datetime
    expires: datetime
    mcp: dict[str, JsonValue] | None = None
    revoked: datetime | None = None
    revision: int = 0

    def is_active(self, now: datetime) -> bool:
        """False when it was revoked or has ended by itself."""
        return self.revoked is None and now < self.expires

    @property
    def record(self) -> TemporaryGrant | None:
        """The grant as the mesh sees it: None when it was revoked."""
        if self.revoked is not None:
            return None
        return TemporaryGrant(
            id=self.id,
            from_=self.from_,
            to=self.to,
            ip=self.ip,
            reason=self.reason,
            actor=self.actor,
            expires=int(self.expires.timestamp()),
            mcp=self.mcp,
        )
