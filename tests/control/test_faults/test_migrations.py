"""A database of every released schema, with data in it, comes up to the newest one with all of it."""

from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, Table, insert, select

from controller.store.engine import Engines
from controller.store.migrate import migrate, migrations_path
from controller.store.upgrade import upgrade

from ..support import MovableClock

REVISIONS = sorted(path.name.partition("_")[0] for path in (migrations_path() / "versions").glob("*.py"))


def tables(connection: Connection) -> list[Table]:
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def fill(connection: Connection, clock: MovableClock, postgresql: bool) -> dict[str, list[dict[str, Any]]]:
    """Two rows in every table, with a value in every column; answers with what is in them then."""
    for table in tables(connection):
        for number in (1, 2):
            row: dict[str, Any] = {}
            for column in table.columns:
                kind = column.type.python_type
                text = "[]" if column.name in {"nodes", "tags", "endpoints", "services", "grants"} else f"x{number}"
                moment = clock() if postgresql else clock().replace(tzinfo=None)
                row[column.name] = (
                    moment
                    if kind.__name__ == "datetime"
                    else {bool: False, int: number, str: text, bytes: b"x"}.get(kind, text)
                )
            connection.execute(insert(table).values(row))
    return content(connection)


def content(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    return {
        table.name: [
            dict(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns)).mappings()
        ]
        for table in tables(connection)
    }


@pytest.mark.parametrize("revision", REVISIONS)
async def test_data_of_a_released_schema_is_kept(empty_database_url: str, clock: MovableClock, revision: str) -> None:
    engines = Engines(empty_database_url)
    try:
        async with engines.write.begin() as connection:
            await connection.run_sync(upgrade, migrations_path(), revision)
            before = await connection.run_sync(fill, clock, not engines.sqlite)
        assert await migrate(engines) == (revision, REVISIONS[-1])
        async with engines.read.connect() as connection:
            after = await connection.run_sync(content)
    finally:
        await engines.dispose()
    for name, rows in before.items():
        kept = [{column: row[column] for column in rows[0]} for row in after[name]]
        assert kept == rows, name
