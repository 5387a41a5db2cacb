"""Checkpoints can be checked and downloaded, a diverged job learns more slowly, a worker can be asked to drain."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("checkpoints", sa.Column("size_bytes", sa.BigInteger(), nullable=True))
    op.add_column("checkpoints", sa.Column("sha256", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("learning_rate_factor", sa.Float(), server_default="1.0", nullable=False))
    op.add_column("workers", sa.Column("drain_requested_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Take this step back. In place on SQLite too: other tables refer to these."""
    op.drop_column("workers", "drain_requested_at")
    op.drop_column("jobs", "learning_rate_factor")
    op.drop_column("checkpoints", "sha256")
    op.drop_column("checkpoints", "size_bytes")
