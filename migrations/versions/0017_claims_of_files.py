"""Files are worked on by one process at a time, attempts are counted, dry runs know who asked, idle plans are found."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("files", sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("files", sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("rehearsals", sa.Column("organization_id", sa.String(64), nullable=True))
    op.create_index("ix_jobs_plan_id", "jobs", ["plan_id"])
    op.create_index("ix_plans_expires_at", "plans", ["expires_at"])


def downgrade() -> None:
    """Take this step back."""
    op.drop_index("ix_plans_expires_at", "plans")
    op.drop_index("ix_jobs_plan_id", "jobs")
    op.drop_column("rehearsals", "organization_id")
    op.drop_column("files", "claimed_until")
    op.drop_column("files", "attempts")
