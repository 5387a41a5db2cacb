"""An organization may keep a token for the model hub, encrypted."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "hub_tokens",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.String(length=2000), nullable=False),
        sa.Column("hint", sa.String(length=4), nullable=False),
        sa.Column("hub_account", sa.String(length=200), nullable=True),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_hub_tokens_organization_id_organizations"
        ),
        sa.PrimaryKeyConstraint("organization_id", name="pk_hub_tokens"),
    )


def downgrade() -> None:
    """Take this step back. Organizations ask the hub as nobody again, until they give their tokens anew."""
    op.drop_table("hub_tokens")
