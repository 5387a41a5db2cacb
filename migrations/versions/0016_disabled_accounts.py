"""Accounts can be disabled, and keys that were made with another one know it."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("api_keys", sa.Column("parent_id", sa.String(length=64), nullable=True))
    op.create_index("ix_api_keys_parent_id", "api_keys", ["parent_id"])
    op.add_column("users", sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Take this step back. In place on SQLite too: other tables refer to these."""
    op.drop_column("users", "disabled_at")
    op.drop_index("ix_api_keys_parent_id", table_name="api_keys")
    op.drop_column("api_keys", "parent_id")
