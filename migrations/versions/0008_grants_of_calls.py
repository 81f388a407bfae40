"""What a temporary grant allows of a service's calls.

Types are written out, not imported from the models: a migration must keep meaning what it meant.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Grants from before this revision say nothing about calls.
    op.add_column("grants", sa.Column("mcp", sa.Text(), nullable=True))
