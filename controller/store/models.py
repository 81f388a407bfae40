"""The tables. Migrations are written against these (a test compares them); only the store's modules import them.

Types are those that SQLite and PostgreSQL share; JSON is kept as text, so that what was hashed is what is stored.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from controller.wire.rest import AdminRole, NodeState

__all__ = [
    "AddressRow",
    "AuditRow",
    "Base",
    "CallRow",
    "ChangeRow",
    "EnrolmentKeyRow",
    "GrantRow",
    "MeshRow",
    "NodeRow",
    "NodeTagRow",
    "PolicyRow",
    "PoolRow",
    "PresenceRow",
    "ReplicaRow",
    "ResponseRow",
    "ServiceRow",
    "SpoolRow",
    "StreamRow",
    "TokenRow",
]


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite keeps no zone, so it is put back when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive values: comparing them in SQL would be comparing guesses."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: the store keeps UTC")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware datetime in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(TypeDecorator[Any]):
    """Any JSON value, as text that the database does not rewrite (PostgreSQL's jsonb would reorder it)."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """None is SQL NULL."""
        return None if value is None else json.dumps(value, separators=(",", ":"), sort_keys=True)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """The inverse."""
        return None if value is None else json.loads(value)


class Base(DeclarativeBase):
    """Constraint names are fixed, because migrations must be able to name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[Mapping[Any, Any]] = {
        datetime: UtcDateTime(),
        list[str]: JsonText(),
        dict[str, Any]: JsonText(),
        NodeState: String(16),
        AdminRole: String(16),
        Literal["agent", "static"]: String(16),
        Literal["kernel", "userspace"]: String(16),
    }


class MeshRow(Base):
    """The facts of the one mesh, fixed at first start."""

    __tablename__ = "mesh"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    domain: Mapped[str] = mapped_column(String(253))
    prefix4: Mapped[str] = mapped_column(String(43))
    prefix6: Mapped[str] = mapped_column(String(43))
    ca_sha256: Mapped[str] = mapped_column(String(64))
    timeline: Mapped[str] = mapped_column(String(64), server_default="")  # changes when a backup is restored
    created: Mapped[datetime]


class NodeRow(Base):
    """A member of the mesh."""

    __tablename__ = "nodes"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    kind: Mapped[Literal["agent", "static"]]
    state: Mapped[NodeState] = mapped_column(index=True)
    public_key: Mapped[str] = mapped_column(String(44), unique=True)
    # SHA-256 of the identity key's SubjectPublicKeyInfo; static peers have none.
    identity: Mapped[str | None] = mapped_column(String(64), unique=True)
    enrolment_key: Mapped[str | None] = mapped_column(String(64))
    number: Mapped[int] = mapped_column(BigInteger, unique=True)
    endpoints: Mapped[list[str]]  # as the host (or, for a static peer, the admin) states them
    observed: Mapped[str | None] = mapped_column(String(64))  # the endpoint at which the controller sees the host
    behind_nat: Mapped[bool]
    ephemeral: Mapped[bool] = mapped_column(index=True)
    created: Mapped[datetime]
    revision: Mapped[int] = mapped_column(BigInteger)


class NodeTagRow(Base):
    """A node's tag, in a table of its own so that listing by tag uses an index on both databases."""

    __tablename__ = "node_tags"
    node_id: Mapped[str] = mapped_column(String(64), ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(67), primary_key=True, index=True)


class PresenceRow(Base):
    """What was last known of a host that is not connected now. Coarse, and not a mutation of the mesh."""

    __tablename__ = "presence"
    node_id: Mapped[str] = mapped_column(String(64), ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True)
    last_seen: Mapped[datetime]
    agent_version: Mapped[str | None] = mapped_column(Text)
    backend: Mapped[Literal["kernel", "userspace"] | None]


class ReplicaRow(Base):
    """A controller that uses this database, and up to which revision its rows of `streams` are."""

    __tablename__ = "replicas"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(BigInteger)
    seen: Mapped[datetime]


class StreamRow(Base):
    """What the controller that a host is, or was last, connected to said of it. Not kept in backups."""

    __tablename__ = "streams"
    node_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    replica: Mapped[str] = mapped_column(String(64), index=True)
    since: Mapped[datetime]
    facts: Mapped[dict[str, Any]]
    written: Mapped[datetime] = mapped_column(index=True)


class AddressRow(Base):
    """A host number that is in use, or was: with `released`, it is in quarantine since then, then free.

    It belongs to a node or to a service; a released one remembers the service that had it, so that it can come back.
    """

    __tablename__ = "addresses"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    node_id: Mapped[str | None] = mapped_column(String(64), unique=True)
    service: Mapped[str | None] = mapped_column(String(63), unique=True, index=True)
    released: Mapped[datetime | None] = mapped_column(index=True)


class ServiceRow(Base):
    """A gateway service of the policy in force: its host number, and which node holds that."""

    __tablename__ = "services"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, unique=True)
    holder: Mapped[str | None] = mapped_column(String(64))
    since: Mapped[datetime]  # when it got this holder, or lost its last one
    revision: Mapped[int] = mapped_column(BigInteger)


class PoolRow(Base):
    """The one row of the allocator: every number from `next` up was never handed out, unless it was requested."""

    __tablename__ = "address_pool"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    next: Mapped[int] = mapped_column(BigInteger)
    used: Mapped[int] = mapped_column(BigInteger)


class EnrolmentKeyRow(Base):
    """An enrolment key: its hash and what it grants."""

    __tablename__ = "enrolment_keys"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    prefix: Mapped[str] = mapped_column(String(32), unique=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    tags: Mapped[list[str]]
    uses: Mapped[int | None] = mapped_column(BigInteger)
    used: Mapped[int] = mapped_column(BigInteger)
    ephemeral: Mapped[bool]
    approved: Mapped[bool]
    note: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime]
    expires: Mapped[datetime]
    revoked: Mapped[datetime | None]
    __table_args__ = (Index("ix_enrolment_keys_created_id", "created", "id"),)


class TokenRow(Base):
    """An admin token: its hash and role."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    prefix: Mapped[str] = mapped_column(String(32), unique=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[AdminRole]
    user: Mapped[str | None] = mapped_column("user_name", String(64))  # USER is a word of SQL
    note: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]
    __table_args__ = (Index("ix_tokens_created_id", "created", "id"),)


class PolicyRow(Base):
    """Every policy document that was ever in force; the newest is."""

    __tablename__ = "policies"
    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(Text)
    applied: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(128))


class GrantRow(Base):
    """A temporary grant; it stays when it has ended."""

    __tablename__ = "grants"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    from_: Mapped[list[str]] = mapped_column("from")
    to: Mapped[list[str]]
    ip: Mapped[list[str]]
    mcp: Mapped[dict[str, Any] | None]  # as written; None: it says nothing about calls
    reason: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(128))
    created: Mapped[datetime]
    expires: Mapped[datetime] = mapped_column(index=True)
    revoked: Mapped[datetime | None]
    revision: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (Index("ix_grants_created_id", "created", "id"),)


class ChangeRow(Base):
    """One committed mutation: which objects to load again. Revisions have no gaps."""

    __tablename__ = "changes"
    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    time: Mapped[datetime]
    nodes: Mapped[list[str]]
    policy: Mapped[bool]
    services: Mapped[list[str]]
    grants: Mapped[list[str]]


class AuditRow(Base):
    """One entry of the hash chain; its number is its mutation's revision."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(BigInteger, ForeignKey("changes.revision"), primary_key=True, autoincrement=False)
    time: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(128), index=True)
    action: Mapped[str] = mapped_column(String(64), index=True)
    subject: Mapped[str] = mapped_column(String(128), index=True)
    old: Mapped[Any] = mapped_column(JsonText, nullable=True)
    new: Mapped[Any] = mapped_column(JsonText, nullable=True)
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


# SQLite counts by itself only in a column that is called INTEGER.
_COUNTED = BigInteger().with_variant(Integer(), "sqlite")


class SpoolRow(Base):
    """A gateway's spool on a host, and how far its records are in `calls`, or were before they grew old."""

    __tablename__ = "spools"
    number: Mapped[int] = mapped_column(_COUNTED, primary_key=True)
    node: Mapped[str] = mapped_column(String(64))  # no foreign key: what a node did outlives it
    spool: Mapped[str] = mapped_column(String(32))
    through: Mapped[int] = mapped_column(BigInteger)
    updated: Mapped[datetime]
    __table_args__ = (UniqueConstraint("node", "spool"),)


class CallRow(Base):
    """One record of a gateway: what lists filter by in columns of its own, and the whole as JSON. Only ever appended.

    Numbers are never used twice, also when old rows are gone: whoever follows goes on from the last one it saw.
    """

    __tablename__ = "calls"
    number: Mapped[int] = mapped_column(_COUNTED, primary_key=True)
    spool: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)
    node: Mapped[str] = mapped_column(String(64))
    received: Mapped[datetime]
    time: Mapped[datetime]
    event: Mapped[str] = mapped_column(String(64))
    service: Mapped[str | None] = mapped_column(String(63))
    caller: Mapped[str | None] = mapped_column(String(64))
    tool: Mapped[str | None] = mapped_column(Text)
    decision: Mapped[str | None] = mapped_column(String(16))
    record: Mapped[str] = mapped_column(Text)
    __table_args__ = (
        UniqueConstraint("spool", "seq"),
        Index("ix_calls_time", "time"),
        Index("ix_calls_node_time", "node", "time"),
        Index("ix_calls_service_time", "service", "time"),
        Index("ix_calls_caller_time", "caller", "time"),
        Index("ix_calls_decision_time", "decision", "time"),
        {"sqlite_autoincrement": True},
    )


class ResponseRow(Base):
    """What a POST with an Idempotency-Key answered, sealed with a key that only its sender can derive."""

    __tablename__ = "responses"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of actor and Idempotency-Key
    request: Mapped[str] = mapped_column(String(64))  # SHA-256 of method, path and body
    sealed: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(index=True)
