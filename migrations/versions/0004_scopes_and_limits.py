"""API keys have scopes; organizations may have limits of their own.

Keys that exist keep what they could do: everything but administration, which had no routes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LIMITS = {
    "max_running_jobs": sa.Integer(),
    "max_queued_jobs": sa.Integer(),
    "max_storage_bytes": sa.BigInteger(),
    "max_upload_bytes": sa.BigInteger(),
}


def upgrade() -> None:
    """Apply this step."""
    op.add_column("api_keys", sa.Column("scope", sa.String(length=10), server_default="write", nullable=False))
    for name, kind in LIMITS.items():
        op.add_column("organizations", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    """Take this step back. In place on SQLite too: other tables refer to these."""
    for name in LIMITS:
        op.drop_column("organizations", name)
    op.drop_column("api_keys", "scope")
