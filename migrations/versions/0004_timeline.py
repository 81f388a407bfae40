"""A mesh that was restored from a backup goes on in another timeline."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("mesh", sa.Column("timeline", sa.String(length=64), server_default="", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("mesh") as table:
        table.drop_column("timeline")
