"""Brings a database to the schema of this version. The migrations are Alembic's, shipped beside the code.

In a checkout they are in `migrations/`; in an installed wheel the same files are in `controller/_migrations/`.
"""

from importlib import import_module
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, column, inspect, select, table

import controller
from controller.store.engine import Engines, StoreError, lock_writers, translated

__all__ = ["check_current", "migrate", "migrations_path"]

_VERSION: Final = table("alembic_version", column("version_num"))


def migrations_path() -> Path:
    """Where the migrations are. Raises StoreError when this installation has none."""
    package = Path(controller.__file__).parent
    for path in (package / "_migrations", package.parent / "migrations"):
        if (path / "env.py").is_file():
            return path
    raise StoreError(f"the migrations are missing beside {package}: reinstall wardmesh[controller]")


async def migrate(engines: Engines) -> tuple[str | None, str]:
    """Upgrade to the newest schema in one transaction; return the versions before and after. Raises StoreError."""
    with translated(engines.url):
        async with engines.patient.begin() as connection:
            await lock_writers(connection, sqlite=engines.sqlite)
            return await connection.run_sync(_upgrade)


async def check_current(engines: Engines) -> None:
    """Raises StoreError unless the database has exactly this version's schema."""
    with translated(engines.url):
        async with engines.read.connect() as connection:
            before, head = await connection.run_sync(_versions)
    if before != head:
        raise StoreError(
            f"the database {engines.url.render_as_string()} has schema {before or 'none'}, this version needs {head}: "
            "start the controller once, or run `wardmesh-controller migrate`"
        )


def _versions(connection: Connection) -> tuple[str | None, str]:
    return _present(connection), _known()[-1]


def _known() -> list[str]:
    """The schemas of this version, oldest first: a migration's file begins with the revision that it makes."""
    path = migrations_path()
    found = sorted(file.name.partition("_")[0] for file in (path / "versions").glob("*_*.py"))
    if not found:
        raise StoreError(f"there is no migration in {path}: reinstall wardmesh[controller]")
    return found


def _present(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_VERSION.name):
        return None
    return connection.scalar(select(_VERSION.c.version_num))


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    before, known = _present(connection), _known()
    head = known[-1]
    if before is not None and before not in known:
        raise StoreError(
            f"the database has schema {before}, which this version does not know (its newest is {head}): "
            "it was written by a newer wardmesh-controller; upgrade this one"
        )
    if before != head:
        import_module("controller.store.upgrade").upgrade(connection, migrations_path())
    return before, head
