"""Alembic, which runs the migrations. A module of its own: most starts find nothing to do, and need not import it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

__all__ = ["upgrade"]


def upgrade(connection: Connection, migrations: Path, revision: str = "head") -> None:
    """Run the migrations up to `revision` that this database has not had, in the transaction of `connection`."""
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
