"""A drained worker's program can be asked to start again."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("programs", sa.Column("start_requested_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Take this step back. An older supervisor does not know the state and writes it anew at its start."""
    op.execute("update programs set status = 'stopped' where status = 'drained'")
    op.drop_column("programs", "start_requested_at")
