"""What gateways record: calls, and how far each spool of a host has been taken over.

Types are written out, not imported from the models: a migration must keep meaning what it meant.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEXED = ("node", "service", "caller", "decision")


def upgrade() -> None:
    counted = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "spools",
        sa.Column("number", counted, nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("spool", sa.String(length=32), nullable=False),
        sa.Column("through", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_spools")),
        sa.UniqueConstraint("node", "spool", name=op.f("uq_spools_node_spool")),
    )
    op.create_table(
        "calls",
        sa.Column("number", counted, nullable=False),
        sa.Column("spool", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("received", sa.DateTime(timezone=True), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column("service", sa.String(length=63), nullable=True),
        sa.Column("caller", sa.String(length=64), nullable=True),
        sa.Column("tool", sa.Text(), nullable=True),
        sa.Column("decision", sa.String(length=16), nullable=True),
        sa.Column("record", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_calls")),
        sa.UniqueConstraint("spool", "seq", name=op.f("uq_calls_spool_seq")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_calls_time", "calls", ["time"])
    for column in _INDEXED:
        op.create_index(f"ix_calls_{column}_time", "calls", [column, "time"])


def downgrade() -> None:
    for column in reversed(_INDEXED):
        op.drop_index(f"ix_calls_{column}_time", table_name="calls")
    op.drop_index("ix_calls_time", table_name="calls")
    op.drop_table("calls")
    op.drop_table("spools")
