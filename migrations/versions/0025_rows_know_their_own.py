"""What jobs stored knows its organization, models their loss, plans whether a job uses them: none asks other tables."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

STORED = ("checkpoints", "artifacts")
JOBS = sa.table("jobs", sa.column("id"), sa.column("organization_id"))


def upgrade() -> None:
    """Apply this step."""
    for name in STORED:
        op.add_column(name, sa.Column("organization_id", sa.String(length=64), nullable=True))
        stored = sa.table(name, sa.column("job_id"), sa.column("organization_id"))
        owner = sa.select(JOBS.c.organization_id).where(JOBS.c.id == stored.c.job_id).scalar_subquery()
        op.execute(stored.update().values(organization_id=owner))
        with op.batch_alter_table(name) as table:
            table.alter_column("organization_id", existing_type=sa.String(length=64), nullable=False)
            table.create_foreign_key(
                f"fk_{name}_organization_id_organizations", "organizations", ["organization_id"], ["id"]
            )
            table.create_index(f"ix_{name}_organization_id", ["organization_id"])
    op.add_column("fine_tuned_models", sa.Column("valid_loss", sa.Float(), nullable=True))
    op.execute(
        "update fine_tuned_models set valid_loss = case when checkpoint_id is null "
        "then (select valid_loss from jobs where jobs.id = fine_tuned_models.job_id) "
        "else (select valid_loss from checkpoints where checkpoints.id = fine_tuned_models.checkpoint_id) end"
    )
    op.add_column("plans", sa.Column("is_used", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("alter table plans rename column wishes to requested")
    op.execute("delete from rehearsals")  # their questions are asked in other words now, and are asked again
    op.execute("update plans set is_used = true where id in (select plan_id from jobs)")


def downgrade() -> None:
    """Take this step back."""
    op.drop_column("plans", "is_used")
    op.execute("alter table plans rename column requested to wishes")
    op.execute("delete from rehearsals")
    op.drop_column("fine_tuned_models", "valid_loss")
    for name in STORED:
        with op.batch_alter_table(name) as table:
            table.drop_index(f"ix_{name}_organization_id")
            table.drop_constraint(f"fk_{name}_organization_id_organizations", type_="foreignkey")
            table.drop_column("organization_id")
