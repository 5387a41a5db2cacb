"""Steps that a worker runs without weights are dry runs, the field's word for them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Apply this step. What was asked for is asked again: a worker answers it within a minute."""
    _replace("rehearsals", "dry_runs")
    op.execute("alter table plans rename column rehearsed to dry_run")


def downgrade() -> None:
    """Take this step back."""
    op.execute("alter table plans rename column dry_run to rehearsed")
    _replace("dry_runs", "rehearsals")


def _replace(old: str, new: str) -> None:
    op.drop_index(f"ix_{old}_created_at", table_name=old)
    op.drop_table(old)
    op.create_table(
        new,
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("question", _JSON, nullable=False),
        sa.Column("memory", _JSON, nullable=True),
        sa.Column("error", _JSON, nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("organization_id", sa.String(length=64), nullable=True),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=f"pk_{new}"),
    )
    op.create_index(f"ix_{new}_created_at", new, ["created_at"], unique=False)
