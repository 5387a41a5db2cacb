"""An audit log that is append-only for 30 days at least, and what each organization stores, day by day."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

KEPT_DAYS = 30


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "audit_logs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("type", sa.String(60), nullable=False),
        sa.Column("effective_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=True),
        sa.Column("object_id", sa.String(500), nullable=True),
        sa.Column("details", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True),
        sa.Column("actor_kind", sa.String(20), nullable=False),
        sa.Column("actor_user_id", sa.String(64), nullable=True),
        sa.Column("actor_email", sa.String(320), nullable=True),
        sa.Column("actor_key_id", sa.String(64), nullable=True),
        sa.Column("actor_key_prefix", sa.String(20), nullable=True),
        sa.Column("address", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit_logs"),
    )
    op.create_index("ix_audit_logs_organization_id_id", "audit_logs", ["organization_id", "id"])
    op.create_index("ix_audit_logs_effective_at", "audit_logs", ["effective_at"])
    op.create_table(
        "storage_days",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        sa.Column("most_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "day", name="pk_storage_days"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_storage_days_organization_id_organizations"
        ),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "create function audit_logs_append_only() returns trigger language plpgsql as $$ begin "
            f"if tg_op = 'DELETE' and old.effective_at < clock_timestamp() - interval '{KEPT_DAYS} days' "
            "then return old; end if; raise exception 'audit_logs is append-only'; end $$"
        )
        op.execute(
            "create trigger audit_logs_append_only before update or delete on audit_logs "
            "for each row execute function audit_logs_append_only()"
        )
    else:
        refuse = "begin select raise(abort, 'audit_logs is append-only'); end"
        op.execute(f"create trigger audit_logs_no_update before update on audit_logs {refuse}")
        op.execute(
            "create trigger audit_logs_no_delete before delete on audit_logs "
            f"when old.effective_at >= datetime('now', '-{KEPT_DAYS} days') {refuse}"
        )


def downgrade() -> None:
    """Take this step back."""
    op.drop_table("storage_days")
    op.drop_table("audit_logs")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("drop function audit_logs_append_only()")
