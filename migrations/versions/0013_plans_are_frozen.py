"""A plan keeps the hashes of its data; attempts are crashes since the last new checkpoint, where they were starts."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step: a job that is under way has not crashed yet, as far as its number of starts tells."""
    op.add_column("plans", sa.Column("training_sha256", sa.String(length=64), nullable=True))
    op.add_column("plans", sa.Column("validation_sha256", sa.String(length=64), nullable=True))
    op.execute("update jobs set attempts = 0 where status not in ('succeeded', 'failed', 'cancelled')")


def downgrade() -> None:
    """Take this step back. In place on SQLite too: other tables refer to plans."""
    op.drop_column("plans", "validation_sha256")
    op.drop_column("plans", "training_sha256")
