"""Brings a database to the schema of this version. The migrations are Alembic's, shipped beside the code.

In a checkout they are in `migrations/`; in an installed wheel the same files are in `controller/_migrations/`.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

import controller
from controller.store.engine import Engines, StoreError, lock_writers, translated

__all__ = ["check_current", "migrate", "migrations_path"]


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


def _versions(connection: Connection) -> tuple[str | None, str | None]:
    script = ScriptDirectory.from_config(_config())
    return MigrationContext.configure(connection).get_current_revision(), script.get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    return config


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    config = _config()
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head()
    before = MigrationContext.configure(connection).get_current_revision()
    if head is None:
        raise StoreError(f"there is no migration in {migrations_path()}: reinstall wardmesh[controller]")
    if before is not None and before not in {known.revision for known in script.walk_revisions()}:
        raise StoreError(
            f"the database has schema {before}, which this version does not know (its newest is {head}): "
            "it was written by a newer wardmesh-controller; upgrade this one"
        )
    if before != head:
        command.upgrade(config, "head")
    return before, head
