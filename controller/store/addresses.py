"""The allocator's tables: which host number is whose, which rests, and where the untouched ones begin.

Each allocation looks at a handful of rows by index, however many there are. New numbers come first and released ones
only when those have run out, so an address is not given to another node while it can be helped.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from controller.addresses import FIRST_NUMBER
from controller.store.models import AddressRow, PoolRow
from controller.store.unit import Unit
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["AddressTable", "Held"]

_POOL: Final = 1  # the one row
_LOOK_AHEAD: Final = 64  # numbers that were requested before the cursor reached them are rarely many in a row


@dataclass(frozen=True, slots=True)
class Held:
    """Why a number is not free: its node's or its service's, or resting since `released`."""

    number: int
    node_id: NodeId | None
    service: ServiceName | None
    released: datetime | None


class AddressTable:
    """The allocator in one transaction. It knows nothing of addresses, only of numbers."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    @property
    def _session(self) -> AsyncSession:
        return self._unit.session

    async def create_pool(self) -> None:
        """Begin with everything free."""
        self._unit.writing()
        self._session.add(PoolRow(id=_POOL, next=FIRST_NUMBER, used=0))
        await self._session.flush()

    async def used(self) -> int:
        """How many numbers belong to nodes and services."""
        return await self._session.scalar(select(PoolRow.used).where(PoolRow.id == _POOL)) or 0

    async def held(self, number: int) -> Held | None:
        """Who or what holds `number`; None when it was never handed out."""
        row = await self._session.get(AddressRow, number, populate_existing=True)
        return Held(row.number, row.node_id, row.service, row.released) if row else None

    async def take(self, number: int, node_id: NodeId) -> None:
        """Give `number`, which is free or resting, to the node."""
        await self._take(AddressRow(number=number, node_id=node_id, service=None, released=None))

    async def take_for_service(self, number: int, service: ServiceName) -> None:
        """Give `number`, which is free or resting, to the service."""
        await self._take(AddressRow(number=number, node_id=None, service=service, released=None))

    async def last_of(self, service: ServiceName) -> int | None:
        """The resting number that this service had and nobody else got since; None when there is none."""
        return await self._session.scalar(
            select(AddressRow.number).where(AddressRow.service == service, AddressRow.released.is_not(None))
        )

    async def _take(self, row: AddressRow) -> None:
        self._unit.writing()
        await self._session.merge(row)
        await self._session.execute(update(PoolRow).values(used=PoolRow.used + 1))
        await self._session.flush()

    async def release(self, number: int, now: datetime) -> None:
        """Take `number` from its node or service and let it rest from `now` on. A service may have it back."""
        self._unit.writing()
        await self._session.execute(
            update(AddressRow).where(AddressRow.number == number).values(node_id=None, released=now)
        )
        await self._session.execute(update(PoolRow).values(used=PoolRow.used - 1))

    async def next_new(self, last: int) -> int | None:
        """The lowest number up to `last` that was never handed out; None when there is none left."""
        self._unit.writing()
        number = await self._session.scalar(select(PoolRow.next).where(PoolRow.id == _POOL)) or FIRST_NUMBER
        gap = None
        while gap is None and number <= last:
            ahead = await self._session.scalars(
                select(AddressRow.number)
                .where(AddressRow.number >= number)
                .order_by(AddressRow.number)
                .limit(_LOOK_AHEAD)
            )
            gap, number = _first_gap(number, list(ahead))
        await self._session.execute(update(PoolRow).values(next=number))
        return number if number <= last else None

    async def next_rested(self, before: datetime) -> int | None:
        """The number that was released longest ago, if that is at or before `before`."""
        return await self._session.scalar(
            select(AddressRow.number)
            .where(AddressRow.released <= before)
            .order_by(AddressRow.released, AddressRow.number)
            .limit(1)
        )

    async def oldest_release(self) -> datetime | None:
        """When the number that has rested longest was released."""
        return await self._session.scalar(
            select(AddressRow.released).where(AddressRow.released.is_not(None)).order_by(AddressRow.released).limit(1)
        )


def _first_gap(number: int, held: list[int]) -> tuple[int | None, int]:
    """The first number from `number` that is not in the sorted run `held`; (None, where to look on) if it is full."""
    for candidate in held:
        if candidate != number:
            return number, number
        number += 1
    return (None, number) if len(held) == _LOOK_AHEAD else (number, number)
