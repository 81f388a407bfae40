"""Alembic's entry. The connection comes from `controller.store.migrate`, which owns the transaction and the lock."""

from alembic import context

from controller.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite cannot alter most of a table in place; Alembic then copies it.
    render_as_batch=True,
)
# No transaction of Alembic's own: a migration that fails half-way must leave nothing.
context.run_migrations()
