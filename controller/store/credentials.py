"""The tables of enrolment keys and admin tokens. Only hashes are kept; finding one by its hash is the check."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from controller.store.models import EnrolmentKeyRow, TokenRow
from controller.store.unit import Unit
from controller.store.values import StoredKey, StoredToken

__all__ = ["KeyTable", "TokenTable"]


class KeyTable:
    """Enrolment keys in one transaction."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    @property
    def _session(self) -> AsyncSession:
        return self._unit.session

    async def add(self, key: StoredKey) -> None:
        """Remember a new key."""
        self._unit.writing()
        self._session.add(EnrolmentKeyRow(**_row_values(asdict(key))))
        await self._session.flush()

    async def get(self, key_id: str) -> StoredKey | None:
        """The key with this id."""
        return await self._one(select(EnrolmentKeyRow).where(EnrolmentKeyRow.id == key_id))

    async def by_hash(self, digest: str) -> StoredKey | None:
        """The key with this SHA-256."""
        return await self._one(select(EnrolmentKeyRow).where(EnrolmentKeyRow.hash == digest))

    async def page(self, *, before: tuple[datetime, str] | None, limit: int) -> list[StoredKey]:
        """At most `limit` keys, newest first, from before (created, id)."""
        query = select(EnrolmentKeyRow).order_by(EnrolmentKeyRow.created.desc(), EnrolmentKeyRow.id.desc()).limit(limit)
        if before is not None:
            query = query.where(_earlier(EnrolmentKeyRow, before))
        return [_key(row) for row in await self._session.scalars(query)]

    async def redeem(self, digest: str, now: datetime) -> StoredKey | None:
        """Use the key once, if it may be used at `now`; None if not.

        One statement, so of two hosts racing for a last use, one wins.
        """
        self._unit.writing()
        statement = (
            update(EnrolmentKeyRow)
            .where(
                EnrolmentKeyRow.hash == digest,
                EnrolmentKeyRow.revoked.is_(None),
                EnrolmentKeyRow.expires > now,
                or_(EnrolmentKeyRow.uses.is_(None), EnrolmentKeyRow.used < EnrolmentKeyRow.uses),
            )
            .values(used=EnrolmentKeyRow.used + 1)
            .returning(EnrolmentKeyRow)
            .execution_options(synchronize_session=False, populate_existing=True)
        )
        row = (await self._session.scalars(statement)).one_or_none()
        return _key(row) if row else None

    async def revoke(self, key_id: str, now: datetime) -> None:
        """End the key. Nodes that came with it stay."""
        self._unit.writing()
        await self._session.execute(update(EnrolmentKeyRow).where(EnrolmentKeyRow.id == key_id).values(revoked=now))

    async def _one(self, query: Select[EnrolmentKeyRow]) -> StoredKey | None:
        row = (await self._session.scalars(query.execution_options(populate_existing=True))).one_or_none()
        return _key(row) if row else None


class TokenTable:
    """Admin tokens in one transaction."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    @property
    def _session(self) -> AsyncSession:
        return self._unit.session

    async def add(self, token: StoredToken) -> None:
        """Remember a new token."""
        self._unit.writing()
        self._session.add(TokenRow(**asdict(token)))
        await self._session.flush()

    async def get(self, token_id: str) -> StoredToken | None:
        """The token with this id."""
        return await self._one(select(TokenRow).where(TokenRow.id == token_id))

    async def by_hash(self, digest: str) -> StoredToken | None:
        """The token with this SHA-256."""
        return await self._one(select(TokenRow).where(TokenRow.hash == digest))

    async def count(self) -> int:
        """How many tokens there ever were."""
        return await self._session.scalar(select(func.count()).select_from(TokenRow)) or 0

    async def page(self, *, before: tuple[datetime, str] | None, limit: int) -> list[StoredToken]:
        """At most `limit` tokens, newest first, from before (created, id)."""
        query = select(TokenRow).order_by(TokenRow.created.desc(), TokenRow.id.desc()).limit(limit)
        if before is not None:
            query = query.where(_earlier(TokenRow, before))
        return [_token(row) for row in await self._session.scalars(query)]

    async def revoke(self, token_id: str, now: datetime) -> None:
        """End the token."""
        self._unit.writing()
        await self._session.execute(update(TokenRow).where(TokenRow.id == token_id).values(revoked=now))

    async def _one(self, query: Select[TokenRow]) -> StoredToken | None:
        row = (await self._session.scalars(query.execution_options(populate_existing=True))).one_or_none()
        return _token(row) if row else None


def _earlier(row: type[EnrolmentKeyRow] | type[TokenRow], before: tuple[datetime, str]) -> Any:
    created, row_id = before
    return or_(row.created < created, (row.created == created) & (row.id < row_id))


def _row_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, "tags": list(values["tags"])}


def _key(row: EnrolmentKeyRow) -> StoredKey:
    return StoredKey(
        id=row.id,
        prefix=row.prefix,
        hash=row.hash,
        tags=tuple(row.tags),
        uses=row.uses,
        used=row.used,
        ephemeral=row.ephemeral,
        approved=row.approved,
        note=row.note,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
    )


def _token(row: TokenRow) -> StoredToken:
    return StoredToken(
        id=row.id,
        prefix=row.prefix,
        hash=row.hash,
        role=row.role,
        user=row.user,
        note=row.note,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
    )
