"""The tables of nodes: loading, listing, saving. Every save and removal becomes part of the mutation's Change."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar

from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from controller.store.models import NodeRow, NodeTagRow, PresenceRow
from controller.store.unit import Unit
from controller.store.values import NodeFilter, StoredNode
from controller.wire.base import NodeName, PublicKey
from controller.wire.netmap import NodeId
from controller.wire.rest import NodeState

__all__ = ["NodeTable", "write_presence"]

T = TypeVar("T")

_LABEL_LENGTH = 63  # RFC 1035 section 2.3.4
_BATCH = 500  # below the number of bound parameters that every SQLite build takes


class NodeTable:
    """Nodes in one transaction."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    @property
    def _session(self) -> AsyncSession:
        return self._unit.session

    async def get(self, node_id: NodeId) -> StoredNode | None:
        """The node with this id."""
        return await self._one(NodeRow.id == node_id)

    async def by_name(self, name: NodeName) -> StoredNode | None:
        """The node with this name."""
        return await self._one(NodeRow.name == name)

    async def by_public_key(self, public_key: PublicKey) -> StoredNode | None:
        """The node with this WireGuard key."""
        return await self._one(NodeRow.public_key == public_key)

    async def by_identity(self, identity: str) -> StoredNode | None:
        """The node whose identity key has this fingerprint."""
        return await self._one(NodeRow.identity == identity)

    async def by_number(self, number: int) -> StoredNode | None:
        """The node at this host number."""
        return await self._one(NodeRow.number == number)

    async def all(self) -> list[StoredNode]:
        """Every node, by name."""
        return await self._load(select(NodeRow).order_by(NodeRow.name))

    async def with_ids(self, ids: Sequence[NodeId]) -> list[StoredNode]:
        """Those of the nodes that exist."""
        return [
            node for batch in _batches(ids) for node in await self._load(select(NodeRow).where(NodeRow.id.in_(batch)))
        ]

    async def ids(self, kind: Literal["agent", "static"] | None = None) -> list[NodeId]:
        """The ids of all nodes, or of those of one kind."""
        query = select(NodeRow.id) if kind is None else select(NodeRow.id).where(NodeRow.kind == kind)
        return list(await self._session.scalars(query))

    async def ephemeral(self) -> list[StoredNode]:
        """The nodes that are to be removed when they stay away."""
        return await self._load(select(NodeRow).where(NodeRow.ephemeral).order_by(NodeRow.name))

    async def page(self, which: NodeFilter, *, after: NodeName | None, limit: int) -> list[StoredNode]:
        """At most `limit` nodes, by name, from after the name `after`."""
        query = select(NodeRow).order_by(NodeRow.name).limit(limit)
        if after is not None:
            query = query.where(NodeRow.name > after)
        if which.name is not None:
            query = query.where(NodeRow.name == which.name)
        if which.state is not None:
            query = query.where(NodeRow.state == which.state)
        if which.kind is not None:
            query = query.where(NodeRow.kind == which.kind)
        if which.tag is not None:
            query = query.where(NodeRow.id.in_(select(NodeTagRow.node_id).where(NodeTagRow.tag == which.tag)))
        return await self._load(query)

    async def count(self) -> tuple[int, int]:
        """How many nodes there are, and how many of them wait for approval."""
        pending = func.count().filter(NodeRow.state == "pending")
        row = (await self._session.execute(select(func.count(), pending).select_from(NodeRow))).one()
        return int(row[0]), int(row[1])

    async def states(self) -> dict[NodeId, NodeState]:
        """The state of every node."""
        rows = await self._session.execute(select(NodeRow.id, NodeRow.state))
        return {row.id: row.state for row in rows}

    async def free_name(self, wanted: NodeName) -> NodeName:
        """`wanted`, or the first of `wanted-2`, `wanted-3`, … that no node has."""
        if await self._unused(wanted):
            return wanted
        number = 2
        while True:
            suffix = f"-{number}"
            candidate = wanted[: _LABEL_LENGTH - len(suffix)].rstrip("-") + suffix
            if await self._unused(candidate):
                return candidate
            number += 1

    async def save(self, node: StoredNode) -> StoredNode:
        """Insert or replace `node`; return it with the mutation's revision."""
        revision = self._unit.writing()
        row = NodeRow(
            id=node.id,
            name=node.name,
            kind=node.kind,
            state=node.state,
            public_key=node.public_key,
            identity=node.identity,
            enrolment_key=node.enrolment_key,
            number=node.number,
            endpoints=list(node.reported),
            observed=node.observed,
            behind_nat=node.behind_nat,
            ephemeral=node.ephemeral,
            created=node.created,
            revision=revision,
        )
        await self._session.merge(row)
        await self._session.flush()
        await self._session.execute(delete(NodeTagRow).where(NodeTagRow.node_id == node.id))
        self._session.add_all(NodeTagRow(node_id=node.id, tag=tag) for tag in sorted(node.tags))
        await self._session.flush()
        saved = await self.get(node.id)
        assert saved is not None
        self._unit.changed_nodes[node.id] = saved.record
        return saved

    async def remove(self, node_id: NodeId) -> None:
        """Forget the node. Its address is the caller's to release."""
        self._unit.writing()
        await self._session.execute(delete(NodeRow).where(NodeRow.id == node_id))
        self._unit.changed_nodes[node_id] = None

    async def _unused(self, name: NodeName) -> bool:
        return await self._session.scalar(select(NodeRow.id).where(NodeRow.name == name)) is None

    async def _one(self, condition: Any) -> StoredNode | None:
        loaded = await self._load(select(NodeRow).where(condition))
        return loaded[0] if loaded else None

    async def _load(self, query: Select[NodeRow]) -> list[StoredNode]:
        # A row that is in the session from an earlier statement must not hide what was written since.
        rows = (await self._session.scalars(query.execution_options(populate_existing=True))).all()
        tags: dict[NodeId, set[str]] = {row.id: set() for row in rows}
        presence: dict[NodeId, PresenceRow] = {}
        for ids in _batches(list(tags)):
            for tag in await self._session.execute(
                select(NodeTagRow.node_id, NodeTagRow.tag).where(NodeTagRow.node_id.in_(ids))
            ):
                tags[tag.node_id].add(tag.tag)
            for seen in await self._session.scalars(select(PresenceRow).where(PresenceRow.node_id.in_(ids))):
                presence[seen.node_id] = seen
        return [self._stored(row, tags[row.id], presence.get(row.id)) for row in rows]

    def _stored(self, row: NodeRow, tags: Iterable[str], presence: PresenceRow | None) -> StoredNode:
        return StoredNode(
            id=row.id,
            name=row.name,
            kind=row.kind,
            state=row.state,
            tags=frozenset(tags),
            number=row.number,
            addresses=self._unit.plan.addresses(row.number),
            public_key=row.public_key,
            created=row.created,
            identity=row.identity,
            enrolment_key=row.enrolment_key,
            reported=tuple(row.endpoints),
            observed=row.observed,
            behind_nat=row.behind_nat,
            ephemeral=row.ephemeral,
            revision=row.revision,
            last_seen=presence.last_seen if presence else None,
            agent_version=presence.agent_version if presence else None,
            backend=presence.backend if presence else None,
        )


async def write_presence(session: AsyncSession, seen: Sequence[tuple[NodeId, datetime, str | None, Any]]) -> None:
    """Note when each node was last seen, and with which agent and backend. Nodes that are gone are skipped."""
    for batch in _batches(seen):
        ids = [node_id for node_id, *_ in batch]
        nodes = set(await session.scalars(select(NodeRow.id).where(NodeRow.id.in_(ids))))
        noted = set(await session.scalars(select(PresenceRow.node_id).where(PresenceRow.node_id.in_(ids))))
        rows = [
            {"node_id": node_id, "last_seen": last_seen, "agent_version": version, "backend": backend}
            for node_id, last_seen, version, backend in batch
            if node_id in nodes
        ]
        # Both are one statement for many rows, and neither runs without any.
        if new := [row for row in rows if row["node_id"] not in noted]:
            await session.execute(insert(PresenceRow), new)
        if known := [row for row in rows if row["node_id"] in noted]:
            await session.execute(update(PresenceRow), known)


def _batches(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))
