"""Jobs are tallied as they end, know since when they wait, and workers report their disk: what alerts are made of."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "job_tallies",
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("method", sa.String(20), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("code", sa.String(80), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("seconds", sa.Float(), nullable=False, server_default="0.0"),
        sa.Column("buckets", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=True),
        sa.PrimaryKeyConstraint("kind", "method", "status", "code", name=op.f("pk_job_tallies")),
    )
    op.add_column("jobs", sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("workers", sa.Column("disk_free_bytes", sa.BigInteger(), nullable=True))
    op.add_column("workers", sa.Column("disk_total_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Take this step back."""
    op.drop_column("workers", "disk_total_bytes")
    op.drop_column("workers", "disk_free_bytes")
    op.drop_column("jobs", "queued_at")
    op.drop_table("job_tallies")
