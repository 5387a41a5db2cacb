"""A job keeps what its newest step had used, and up to which step it repeats what was lost to the service."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step: what a job has used so far was useful, as far as its row tells."""
    op.add_column("jobs", sa.Column("useful_seconds", sa.Float(), server_default="0.0", nullable=False))
    op.add_column("jobs", sa.Column("repeats_until_step", sa.Integer(), nullable=True))
    op.execute("update jobs set useful_seconds = used_seconds")


def downgrade() -> None:
    """Take this step back. In place on SQLite too: other tables refer to jobs."""
    op.drop_column("jobs", "repeats_until_step")
    op.drop_column("jobs", "useful_seconds")
