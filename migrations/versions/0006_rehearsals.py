"""Models without a formula are planned from rehearsals."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "rehearsals",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("question", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("memory", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True),
        sa.Column("error", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rehearsals")),
    )
    op.create_index(op.f("ix_rehearsals_created_at"), "rehearsals", ["created_at"], unique=False)
    op.add_column(
        "plans", sa.Column("rehearsed", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True)
    )


def downgrade() -> None:
    """Take this step back. In place on SQLite too: jobs refer to plans."""
    op.drop_column("plans", "rehearsed")
    op.drop_index(op.f("ix_rehearsals_created_at"), table_name="rehearsals")
    op.drop_table("rehearsals")
