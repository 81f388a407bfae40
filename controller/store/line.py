"""The one connection of a controller to PostgreSQL that stays open: it hears of others' commits, and may hold the lead.

LISTEN and a session's advisory lock both live as long as a connection, and end with its process however that ends.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from controller.store.engine import LEAD_LOCK, Engines, StoreError, translated
from controller.store.ledger import CHANGES_CHANNEL
from controller.store.replicas import PRESENCE_CHANNEL

__all__ = ["Line", "line"]


class Line:
    """An open line."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._leads = False

    async def lead(self) -> bool:
        """Whether this controller is the one that decides for all, which it becomes when nobody is. Also finds out
        that the connection is gone. Raises DBAPIError, OSError."""
        if self._leads:
            await self._connection.execute(text("SELECT 1"))
        else:
            held = text("SELECT pg_try_advisory_lock(:key)")
            self._leads = bool(await self._connection.scalar(held, {"key": LEAD_LOCK}))
        return self._leads


@asynccontextmanager
async def line(engines: Engines, own: str, *, changes: asyncio.Event, presence: asyncio.Event) -> AsyncIterator[Line]:
    """Sets `changes` and `presence` when another controller says so; `own` is this controller's id.

    Poll as well: a pooler in between may not pass notifications on. Raises StoreError, also when the connection breaks
    within the block.
    """

    def heard(_connection: object, _process: int, channel: str, payload: object) -> None:
        if channel == CHANGES_CHANNEL:
            changes.set()
        elif payload != own:
            presence.set()

    with translated(engines.url):
        async with engines.write.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            driver: Any = (await connection.get_raw_connection()).driver_connection
            try:
                for channel in (CHANGES_CHANNEL, PRESENCE_CHANNEL):
                    await driver.add_listener(channel, heard)
                yield Line(connection)
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                raise StoreError(f"the database {engines.url.render_as_string()} refused: {error}") from error
            finally:
                await connection.invalidate()  # not back to the pool: what it listens to and holds must end
