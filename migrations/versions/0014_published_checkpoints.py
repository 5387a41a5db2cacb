"""Models are made of checkpoints too: a job may have several."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_UNIQUE = "uq_fine_tuned_models_job_id"


def upgrade() -> None:
    """Apply this step."""
    with op.batch_alter_table("fine_tuned_models") as table:
        table.add_column(sa.Column("checkpoint_id", sa.String(length=64), nullable=True))
        table.drop_constraint(_UNIQUE, type_="unique")
    op.create_index("ix_fine_tuned_models_job_id", "fine_tuned_models", ["job_id"])


def downgrade() -> None:
    """Take this step back: only the models that the jobs themselves made are left."""
    op.execute("delete from fine_tuned_models where checkpoint_id is not null")
    op.drop_index("ix_fine_tuned_models_job_id", table_name="fine_tuned_models")
    with op.batch_alter_table("fine_tuned_models") as table:
        table.create_unique_constraint(_UNIQUE, ["job_id"])
        table.drop_column("checkpoint_id")
