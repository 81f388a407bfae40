"""The table of gateway services: their numbers and holders. Every save and removal becomes part of the Change."""

from datetime import datetime

from sqlalchemy import Select, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from controller.store.models import ServiceRow
from controller.store.unit import Unit
from controller.store.values import StoredService
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["ServiceTable"]


class ServiceTable:
    """Gateway services in one transaction. Which ones there are follows from the policy in force."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    @property
    def _session(self) -> AsyncSession:
        return self._unit.session

    async def get(self, name: ServiceName) -> StoredService | None:
        """The service of this name."""
        found = await self._load(select(ServiceRow).where(ServiceRow.name == name))
        return found[0] if found else None

    async def all(self) -> list[StoredService]:
        """Every service, by name."""
        return await self._load(select(ServiceRow).order_by(ServiceRow.name))

    async def save(self, name: ServiceName, number: int, holder: NodeId | None, since: datetime) -> StoredService:
        """Insert or replace the service; return it with the mutation's revision."""
        revision = self._unit.writing()
        await self._session.merge(ServiceRow(name=name, number=number, holder=holder, since=since, revision=revision))
        await self._session.flush()
        saved = StoredService(name, number, self._unit.plan.addresses(number), holder, since, revision)
        self._unit.changed_services[name] = saved.record
        return saved

    async def remove(self, name: ServiceName) -> None:
        """Forget the service. Its address is the caller's to release."""
        self._unit.writing()
        await self._session.execute(delete(ServiceRow).where(ServiceRow.name == name))
        self._unit.changed_services[name] = None

    async def _load(self, query: Select[ServiceRow]) -> list[StoredService]:
        # A row that is in the session from an earlier statement must not hide what was written since.
        rows = await self._session.scalars(query.execution_options(populate_existing=True))
        return [
            StoredService(
                row.name, row.number, self._unit.plan.addresses(row.number), row.holder, row.since, row.revision
            )
            for row in rows
        ]
