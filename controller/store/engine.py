"""Two engines on one database: one that physically cannot write, and one whose transactions are one at a time.

Everything that differs between SQLite and PostgreSQL is here; the tables' modules know neither.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Table, event, func, make_url, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from controller.problems import Kind, Refused
from controller.state_dir import FULL

__all__ = [
    "Engines",
    "FullDiskError",
    "StoreError",
    "check_whole",
    "lock_recorders",
    "lock_writers",
    "session_on",
    "translated",
]

# Any constant will do, as long as all controllers use the same (it spells "wardmesh").
WRITER_LOCK: Final = 0x77617264_6D657368
LEAD_LOCK: Final = WRITER_LOCK + 1  # held by the controller that decides for all
RECORDER_LOCK: Final = WRITER_LOCK + 2
# SQLSTATE class 22, such as a NUL character in an id: PostgreSQL cannot even compare text with it.
_DATA_EXCEPTION: Final = "22"
_DISK_FULL: Final = ("53100", "SQLITE_FULL")  # SQLSTATE disk_full; https://sqlite.org/rescode.html#full
# Seconds for PostgreSQL to accept a connection, or to answer one statement, before it counts as away: a partition
# closes no connection, and whoever waits holds up the writers behind it.
_ANSWER_WITHIN: Final = 10.0
# What PostgreSQL does about us when it is us who vanish: a transaction that nobody goes on with holds every writer up.
_IF_WE_VANISH: Final = {
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}


class StoreError(Exception):
    """The database cannot be used; the message says why and what to do, without the URL's password."""


class FullDiskError(StoreError):
    """The database has no space. What was committed is there, what was asked for now is not."""


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turn what drivers raise about a database that is away or broken into StoreError."""
    try:
        yield
    except DBAPIError as error:
        if str(getattr(error.orig, "sqlstate", "")).startswith(_DATA_EXCEPTION):
            raise Refused(Kind.INVALID, f"a value cannot be kept in the database: {error.orig}") from error
        if _is_full(error):
            raise FullDiskError(f"the database {url.render_as_string()} cannot be written: {FULL}") from error
        raise StoreError(f"the database {url.render_as_string()} refused: {error.orig}") from error
    except PoolTimeoutError as error:
        raise StoreError(f"the database {url.render_as_string()} is busy: no connection became free in time") from error
    except (OSError, TimeoutError) as error:
        reason = str(error) or f"it did not answer within {_ANSWER_WITHIN:g} s"
        raise StoreError(f"the database {url.render_as_string()} cannot be reached: {reason}") from error


def _is_full(error: DBAPIError) -> bool:
    # SQLAlchemy's adapter raises the driver's exception anew; what it was says more.
    original: BaseException | None = error.orig
    while original is not None:
        if getattr(original, "sqlstate", getattr(original, "sqlite_errorname", None)) in _DISK_FULL:
            return True
        original = original.__cause__
    return False


@asynccontextmanager
async def session_on(engine: AsyncEngine, *, expire_on_commit: bool = True) -> AsyncIterator[AsyncSession]:
    """A session whose connection is dropped when the database did not answer: a rollback would wait for it again."""
    async with AsyncSession(engine, expire_on_commit=expire_on_commit) as session:
        try:
            yield session
        except TimeoutError:
            await session.invalidate()
            raise


def parse_url(text_: str) -> URL:
    """Accept a SQLite or PostgreSQL URL, with or without a driver. Raises StoreError."""
    try:
        url = make_url(text_)
    except ArgumentError as error:
        raise StoreError(
            "the database URL cannot be read: write it like sqlite:////var/lib/wardmesh-controller/controller.db or "
            "postgresql://USER@HOST/NAME"
        ) from error
    backend = url.drivername.split("+")[0]
    if backend not in _DRIVERS:
        raise StoreError(f"the database {backend!r} is not supported: use sqlite or postgresql")
    return url.set(drivername=_DRIVERS[backend])


class Engines:
    """`read` and `write` on one database."""

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        try:
            self.read, self.write = self._sqlite() if self.sqlite else self._postgresql()
        except NoSuchModuleError as error:
            raise StoreError(f"no driver for {self.url.drivername}: install wardmesh[controller]") from error

    def _sqlite(self) -> tuple[AsyncEngine, AsyncEngine]:
        # The timeout (seconds) is how long another process, such as `token create`, may hold the file.
        read = create_async_engine(self.url, connect_args={"timeout": 30})
        write = create_async_engine(self.url, connect_args={"timeout": 30}, pool_size=1, max_overflow=0)
        _sqlite_connections(read, begin="BEGIN", query_only=True)
        # IMMEDIATE takes the write lock at once: a transaction that read first and then upgrades can only fail.
        _sqlite_connections(write, begin="BEGIN IMMEDIATE", query_only=False)
        return read, write

    def _postgresql(self) -> tuple[AsyncEngine, AsyncEngine]:
        snapshot = {"default_transaction_read_only": "on", "default_transaction_isolation": "repeatable read"}
        patience = {"timeout": _ANSWER_WITHIN, "command_timeout": _ANSWER_WITHIN}
        ours = {"application_name": "wardmesh", **_IF_WE_VANISH}
        read = create_async_engine(
            self.url, pool_pre_ping=True, connect_args={**patience, "server_settings": {**ours, **snapshot}}
        )
        write = create_async_engine(
            self.url, pool_pre_ping=True, pool_size=4, connect_args={**patience, "server_settings": ours}
        )
        return read, write

    @property
    def patient(self) -> AsyncEngine:
        """Writes, and waits for each statement as long as it takes: for the few that may rewrite a whole table."""
        return self.write if self.sqlite else create_async_engine(self.url, poolclass=NullPool)

    async def dispose(self) -> None:
        """Close every connection."""
        await self.read.dispose()
        await self.write.dispose()


async def lock_writers(session: AsyncSession | AsyncConnection, *, sqlite: bool) -> None:
    """Wait until this transaction is the only writer, of all processes, so that revisions and the chain have no gap."""
    if sqlite:
        await session.execute(text("SELECT 1"))  # the transaction begins with the first statement: BEGIN IMMEDIATE
    else:
        await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})


async def lock_recorders(session: AsyncSession, *, sqlite: bool) -> None:
    """Wait until this transaction is the only one that records calls, so that their numbers appear in their order.

    On PostgreSQL mutations go on beside it; SQLite has one writer of anything.
    """
    if sqlite:
        await session.execute(text("SELECT 1"))
    else:
        await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": RECORDER_LOCK})


async def check_whole(engines: Engines) -> None:
    """Raises StoreError when the database's own check finds it damaged. PostgreSQL guards its pages by itself."""
    if not engines.sqlite:
        return
    with translated(engines.url):
        async with engines.read.connect() as connection:
            verdict = await connection.scalar(text("PRAGMA quick_check(1)"))
            stray = (await connection.execute(text("PRAGMA foreign_key_check"))).first()
    if verdict != "ok" or stray is not None:
        fault = verdict if verdict != "ok" else f"a row of {stray[0] if stray else ''} refers to one that is not there"
        raise StoreError(
            f"the database {engines.url.render_as_string()} is damaged ({fault}): keep the file, and restore a backup "
            "with `wardmesh-controller restore` into an empty state directory"
        )


async def continue_numbers(connection: AsyncConnection, table: Table, *, sqlite: bool) -> None:
    """Let a table that numbers its rows by itself go on after rows that came with their numbers."""
    column = table.autoincrement_column
    if sqlite or column is None:  # SQLite looks at the rows
        return
    newest = await connection.scalar(select(func.max(column)))
    if newest is not None:
        sequence = func.pg_get_serial_sequence(table.name, column.name)
        await connection.execute(select(func.setval(sequence, newest)))


def _sqlite_connections(engine: AsyncEngine, *, begin: str, query_only: bool) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        # The driver would begin transactions on its own, too late and deferred; we say when (see `on_begin`).
        connection.isolation_level = None
        cursor = connection.cursor()
        # journal_mode writes to the file's header, so it must come before query_only.
        for pragma in (
            "journal_mode=WAL",
            # With WAL, NORMAL may lose the last commits at a power cut; an enrolled host must not be forgotten.
            "synchronous=FULL",
            "foreign_keys=ON",
            f"query_only={int(query_only)}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
