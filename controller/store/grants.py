"""The table of temporary grants. They are never deleted: what was granted stays on record after it has ended."""

from dataclasses import replace
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from controller.store.models import GrantRow
from controller.store.unit import Unit
from controller.store.values import StoredGrant
from controller.wire.grants import GrantState

__all__ = ["GrantTable"]


class GrantTable:
    """Temporary grants in one transaction."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    @property
    def _session(self) -> AsyncSession:
        return self._unit.session

    async def save(self, grant: StoredGrant) -> StoredGrant:
        """Write a new or changed grant; returned with its new revision."""
        saved = replace(grant, revision=self._unit.writing())
        await self._session.merge(
            GrantRow(
                id=saved.id,
                from_=list(saved.from_),
                to=list(saved.to),
                ip=list(saved.ip),
                mcp=saved.mcp,
                reason=saved.reason,
                actor=saved.actor,
                created=saved.created,
                expires=saved.expires,
                revoked=saved.revoked,
                revision=saved.revision,
            )
        )
        await self._session.flush()
        self._unit.changed_grants[saved.id] = saved.record
        return saved

    async def get(self, grant_id: str) -> StoredGrant | None:
        """The grant with this id."""
        row = await self._session.get(GrantRow, grant_id, populate_existing=True)
        return _grant(row) if row else None

    async def active(self, now: datetime) -> list[StoredGrant]:
        """All that have not ended at `now`."""
        return [_grant(row) for row in await self._session.scalars(select(GrantRow).where(_is_active(now)))]

    async def last_ended(self, now: datetime) -> datetime | None:
        """When a grant last ended by its time; None when none has yet."""
        by_time = and_(GrantRow.revoked.is_(None), GrantRow.expires <= now)
        return await self._session.scalar(select(func.max(GrantRow.expires)).where(by_time))

    async def page(
        self, *, before: tuple[datetime, str] | None, limit: int, state: GrantState | None, now: datetime
    ) -> list[StoredGrant]:
        """At most `limit` grants, newest first, from before (created, id)."""
        query = select(GrantRow).order_by(GrantRow.created.desc(), GrantRow.id.desc()).limit(limit)
        if before is not None:
            created, row_id = before
            query = query.where(
                or_(GrantRow.created < created, and_(GrantRow.created == created, GrantRow.id < row_id))
            )
        if state is not None:
            query = query.where(_is_active(now) if state == "active" else ~_is_active(now))
        return [_grant(row) for row in await self._session.scalars(query)]


def _is_active(now: datetime) -> ColumnElement[bool]:
    return and_(GrantRow.revoked.is_(None), GrantRow.expires > now)


def _grant(row: GrantRow) -> StoredGrant:
    return StoredGrant(
        id=row.id,
        from_=tuple(row.from_),
        to=tuple(row.to),
        ip=tuple(row.ip),
        mcp=row.mcp,
        reason=row.reason,
        actor=row.actor,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
        revision=row.revision,
    )
