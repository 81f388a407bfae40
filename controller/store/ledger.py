"""The tables that only ever grow: changes, the audit chain, policy documents."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from controller.audit import GENESIS, Action, chain_hash
from controller.records import PastChange, PolicyRecord
from controller.store.models import AuditRow, ChangeRow, PolicyRow
from controller.store.unit import Unit
from controller.store.values import StoredPolicy
from controller.wire.rest import AuditEntry

__all__ = ["CHANGES_CHANNEL", "Ledger", "PolicyTable", "announce", "append", "newest_revision"]

CHANGES_CHANNEL: Final = "wardmesh_changes"


async def newest_revision(session: AsyncSession) -> int:
    """The revision of the last mutation; 0 before the first."""
    return await session.scalar(select(func.max(ChangeRow.revision))) or 0


async def announce(session: AsyncSession) -> None:
    """Let other controllers on this PostgreSQL hear of the change when it is committed."""
    await session.execute(select(func.pg_notify(CHANGES_CHANNEL, "")))


async def append(unit: Unit, *, time: datetime, actor: str, action: Action, subject: str, old: Any, new: Any) -> None:
    """Add the change and the audit entry of a mutation: the last thing that it writes."""
    revision = unit.writing()
    unit.session.add(
        ChangeRow(
            revision=revision,
            time=time,
            nodes=sorted(unit.changed_nodes),
            policy=unit.changed_policy is not None,
            services=sorted(unit.changed_services),
            grants=sorted(unit.changed_grants),
        )
    )
    await unit.session.flush()  # the audit entry refers to it
    previous = await unit.session.scalar(select(AuditRow.hash).where(AuditRow.seq == revision - 1)) or GENESIS
    digest = chain_hash(
        previous,
        seq=revision,
        time=time.isoformat(),
        actor=actor,
        action=action,
        subject=subject,
        old=old,
        new=new,
    )
    unit.session.add(
        AuditRow(
            seq=revision,
            time=time,
            actor=actor,
            action=str(action),
            subject=subject,
            old=old,
            new=new,
            previous=previous,
            hash=digest,
        )
    )
    await unit.session.flush()


class Ledger:
    """Reading what happened."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    async def revision(self) -> int:
        """The revision of the last mutation; 0 before the first."""
        return await newest_revision(self._unit.session)

    async def changes_after(self, revision: int) -> list[ChangeRow]:
        """The mutations after `revision`, oldest first."""
        query = select(ChangeRow).where(ChangeRow.revision > revision).order_by(ChangeRow.revision)
        return list(await self._unit.session.scalars(query))

    async def past(self, most: int = 5000) -> list[PastChange]:
        """What the last mutations were about, oldest first."""
        rows = await self._unit.session.scalars(select(ChangeRow).order_by(ChangeRow.revision.desc()).limit(most))
        found = [
            PastChange(
                row.revision,
                row.time.timestamp(),
                tuple(row.nodes),
                tuple(row.services),
                rules=row.policy or bool(row.grants),
            )
            for row in rows
        ]
        return found[::-1]

    async def audit_page(
        self,
        *,
        before: int | None,
        limit: int,
        action: str | None = None,
        subject: str | None = None,
        actor: str | None = None,
    ) -> list[AuditEntry]:
        """At most `limit` audit entries, newest first, from before entry `before`."""
        query = select(AuditRow).order_by(AuditRow.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(AuditRow.seq < before)
        if action is not None:
            query = query.where(AuditRow.action == action)
        if subject is not None:
            query = query.where(AuditRow.subject == subject)
        if actor is not None:
            query = query.where(AuditRow.actor == actor)
        return [_entry(row) for row in await self._unit.session.scalars(query)]

    async def audit_after(self, seq: int, limit: int = 1000) -> list[AuditEntry]:
        """The audit entries after `seq`, oldest first."""
        query = select(AuditRow).where(AuditRow.seq > seq).order_by(AuditRow.seq).limit(limit)
        return [_entry(row) for row in await self._unit.session.scalars(query)]


class PolicyTable:
    """Policy documents in one transaction."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    async def current(self) -> StoredPolicy | None:
        """The document in force; None before the first."""
        row = await self._unit.session.scalar(select(PolicyRow).order_by(PolicyRow.revision.desc()).limit(1))
        return StoredPolicy(row.revision, row.text, row.applied, row.actor) if row else None

    async def page(self, *, before: int | None, limit: int) -> list[StoredPolicy]:
        """At most `limit` documents, newest first, from before revision `before`."""
        query = select(PolicyRow).order_by(PolicyRow.revision.desc()).limit(limit)
        if before is not None:
            query = query.where(PolicyRow.revision < before)
        return [StoredPolicy(r.revision, r.text, r.applied, r.actor) for r in await self._unit.session.scalars(query)]

    async def apply(self, text: str, *, actor: str, now: datetime) -> StoredPolicy:
        """Put a document in force. Earlier ones stay in the table."""
        revision = self._unit.writing()
        self._unit.session.add(PolicyRow(revision=revision, text=text, applied=now, actor=actor))
        await self._unit.session.flush()
        self._unit.changed_policy = PolicyRecord(revision=revision, text=text)
        return StoredPolicy(revision, text, now, actor)


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        seq=row.seq,
        time=row.time,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        old=row.old,
        new=row.new,
        previous=row.previous,
        hash=row.hash,
    )
