"""Gateway services: their host numbers and holders, and which of them a change touched.

Types are written out, not imported from the models: a migration must keep meaning what it meant.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "services",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_services")),
        sa.UniqueConstraint("number", name=op.f("uq_services_number")),
    )
    op.add_column("addresses", sa.Column("service", sa.String(length=63), nullable=True))
    op.create_index(op.f("ix_addresses_service"), "addresses", ["service"], unique=True)
    # What was changed before there were services touched none of them.
    op.add_column("changes", sa.Column("services", sa.Text(), nullable=False, server_default="[]"))
