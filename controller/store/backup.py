"""A mesh in one file, and back: every row of the database and the files that belong to it, as an SQLite database.

The file is the same whichever database it comes from or goes to, so it is also the way from SQLite to PostgreSQL. It
has the schema of the version that wrote it; restoring migrates it first. Knows nothing of what the rows mean, but for
the timeline: a mesh that was put back to an earlier state must not be taken for the one that went on.
"""

import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controller.state_dir import FULL, reason_of
from controller.store.engine import Engines, FullDiskError, continue_numbers, lock_writers, translated
from controller.store.migrate import check_current, migrate
from controller.store.models import Base, MeshRow, ReplicaRow, StreamRow

__all__ = ["BackupError", "create", "fill", "opened"]

_FORMAT: Final = 1
_BATCH: Final = 500  # rows that are in memory at once
_EXTRA: Final = "CREATE TABLE backup (name TEXT PRIMARY KEY, content BLOB NOT NULL)"
_FORMAT_NAME: Final = "format"
_FILE_PREFIX: Final = "file/"
_OF_THE_MOMENT: Final = {ReplicaRow.__tablename__, StreamRow.__tablename__}  # worth nothing to another process


class BackupError(Exception):
    """The backup cannot be written or used; the message says why and what to do. Nothing was changed."""


async def create(engines: Engines, target: Path, files: Mapping[str, bytes]) -> int:
    """Write everything, as it is at one moment, to the new file `target` (mode 0600); return the number of rows.

    The database may be in use. After a crash there is no file at `target`. Raises BackupError, StoreError.
    """
    await check_current(engines)
    with _new_file(target) as made, _written(target):
        copy = Engines(f"sqlite:///{made}")
        try:
            await migrate(copy)
            with translated(engines.url):
                async with engines.read.connect() as source, copy.write.begin() as sink:
                    rows = await _copy(source, sink)
        finally:
            await copy.dispose()
        with closing(sqlite3.connect(made)) as extra, extra:
            extra.execute("PRAGMA journal_mode=DELETE")  # one file, not three
            extra.execute(_EXTRA)
            extra.execute("INSERT INTO backup VALUES (?, ?)", (_FORMAT_NAME, str(_FORMAT).encode()))
            extra.executemany(
                "INSERT INTO backup VALUES (?, ?)",
                [(f"{_FILE_PREFIX}{name}", content) for name, content in files.items()],
            )
    return rows


@contextmanager
def _written(target: Path) -> Iterator[None]:
    """Say of the backup what is said of its making. Nothing else is written here, so the full disk is its own."""
    try:
        yield
    except (FullDiskError, sqlite3.Error) as error:
        reason = FULL if isinstance(error, FullDiskError) else str(error)
        raise BackupError(f"cannot write {target}: {reason}") from error


@asynccontextmanager
async def opened(source: Path, directory: Path) -> AsyncIterator[tuple[Engines, dict[str, bytes]]]:
    """A private copy, in `directory`, of the backup `source`, with the schema of this version; and the files in it.

    The copy goes when the block ends. Raises BackupError, StoreError.
    """
    with tempfile.TemporaryDirectory(dir=directory, prefix=".restore.") as private:
        copy = Path(private) / "backup.db"
        try:
            files = _taken_out(source, copy)
        except OSError as error:
            raise BackupError(f"cannot copy the backup {source} to {directory}: {reason_of(error)}") from error
        except (sqlite3.Error, ValueError) as error:
            raise BackupError(f"{source} is not a whole backup ({error}): take another, or copy it again") from error
        engines = Engines(f"sqlite:///{copy}")
        try:
            await migrate(engines)
            yield engines, files
        finally:
            await engines.dispose()


def _taken_out(source: Path, copy: Path) -> dict[str, bytes]:
    """Copy the backup and take the files out, so that an ordinary database remains. Raises OSError, sqlite3.Error,
    ValueError."""
    copy.write_bytes(source.read_bytes())
    with closing(sqlite3.connect(copy)) as database, database:
        (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise ValueError(verdict)
        content: dict[str, bytes] = dict(database.execute("SELECT name, content FROM backup"))
        written = content.pop(_FORMAT_NAME, b"none").decode()
        if written != str(_FORMAT):
            raise ValueError(f"its format is {written}, this version reads {_FORMAT}")
        database.execute("DROP TABLE backup")
    return {name.removeprefix(_FILE_PREFIX): value for name, value in content.items()}


async def fill(engines: Engines, source: Engines, timeline: str) -> int:
    """Copy all rows of `source` into the empty database of `engines`, in one transaction; return their number.

    `timeline` names the history that begins now. Raises BackupError, StoreError.
    """
    await migrate(engines)
    with translated(engines.url):
        async with source.read.connect() as rows, engines.write.begin() as sink:
            await lock_writers(sink, sqlite=engines.sqlite)
            if (await sink.execute(select(MeshRow.id))).first() is not None:
                raise BackupError(
                    f"there is a mesh in {engines.url.render_as_string()} already: restore into an empty database"
                )
            count = await _copy(rows, sink)
            for table in Base.metadata.sorted_tables:
                await continue_numbers(sink, table, sqlite=engines.sqlite)
            await sink.execute(update(MeshRow).values(timeline=timeline))
            return count


async def _copy(source: AsyncConnection, sink: AsyncConnection) -> int:
    count = 0
    for table in Base.metadata.sorted_tables:  # what is referred to comes before what refers
        if table.name in _OF_THE_MOMENT:
            continue
        result = await source.stream(select(table))
        async for rows in result.mappings().partitions(_BATCH):
            await sink.execute(insert(table), [dict(row) for row in rows])
            count += len(rows)
    return count


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A private file that becomes `target` when the block ends well. Raises BackupError."""
    if target.exists():
        raise BackupError(f"{target} exists: backups are not overwritten, choose another name")
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(descriptor)
    except OSError as error:
        raise BackupError(f"cannot write to {target.parent}: {reason_of(error)}") from error
    made = Path(name)
    try:
        yield made
        with made.open("rb") as stream:
            os.fsync(stream.fileno())
        os.link(made, target)  # unlike a rename, this replaces nothing
    except FileExistsError as error:
        raise BackupError(f"{target} exists: backups are not overwritten, choose another name") from error
    except OSError as error:
        raise BackupError(f"cannot write {target}: {reason_of(error)}") from error
    finally:
        for path in (made, *(made.with_name(made.name + end) for end in ("-wal", "-shm", "-journal"))):
            path.unlink(missing_ok=True)
