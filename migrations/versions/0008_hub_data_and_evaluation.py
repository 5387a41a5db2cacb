"""Data sets come from a hub too; plans name a chat template and what is compared; jobs keep what they scored."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Apply this step."""
    op.add_column("files", sa.Column("hub_source", _JSON, nullable=True))
    op.add_column("files", sa.Column("hub_key", sa.String(length=64), nullable=True))
    op.create_index("ix_files_organization_id_hub_key", "files", ["organization_id", "hub_key"], unique=True)
    op.add_column("plans", sa.Column("chat_template", sa.String(length=40), nullable=True))
    op.add_column("plans", sa.Column("exact_match", _JSON, nullable=True))
    op.add_column("jobs", sa.Column("evaluation", _JSON, nullable=True))


def downgrade() -> None:
    """Take this step back. In place on SQLite too: other tables refer to these."""
    op.drop_column("jobs", "evaluation")
    op.drop_column("plans", "exact_match")
    op.drop_column("plans", "chat_template")
    op.drop_index("ix_files_organization_id_hub_key", table_name="files")
    op.drop_column("files", "hub_key")
    op.drop_column("files", "hub_source")
