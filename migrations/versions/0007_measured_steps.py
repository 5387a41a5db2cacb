"""Jobs remember how long their steps took."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("step_seconds", sa.Float(), nullable=True))


def downgrade() -> None:
    """Take this step back."""
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("step_seconds")
