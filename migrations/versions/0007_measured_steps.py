"""Jobs remember how long their steps took."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("jobs", sa.Column("step_seconds", sa.Float(), nullable=True))


def downgrade() -> None:
    """Take this step back. In place on SQLite too: other tables refer to jobs."""
    op.drop_column("jobs", "step_seconds")
