"""A worker drives all devices of its machine, and a job may take several of them at once."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_OF_A_DEVICE = ("device", "device_class", "used_bytes", "tokens_per_second", "job_id")


def upgrade() -> None:
    """Apply this step. Workers of the release before are gone, and those of this one report themselves."""
    op.execute("delete from workers")
    op.drop_index("ix_workers_device_class", table_name="workers")
    for name in _OF_A_DEVICE:
        op.drop_column("workers", name)
    op.create_table(
        "devices",
        sa.Column("worker_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("device", _JSON, nullable=False),
        sa.Column("device_class", sa.String(length=100), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=True),
        sa.Column("tokens_per_second", sa.Double(), nullable=True),
        sa.Column("job_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="fk_devices_worker_id_workers", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("worker_id", "position", name="pk_devices"),
    )
    op.add_column("jobs", sa.Column("devices", _JSON, nullable=True))
    op.add_column("jobs", sa.Column("device_count", sa.Integer(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Take this step back."""
    op.drop_column("jobs", "device_count")
    op.drop_column("jobs", "devices")
    op.drop_table("devices")
    op.execute("delete from workers")
    with op.batch_alter_table("workers") as table:
        table.add_column(sa.Column("device", _JSON, nullable=False))
        table.add_column(sa.Column("device_class", sa.String(length=100), nullable=False))
        table.add_column(sa.Column("used_bytes", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("tokens_per_second", sa.Double(), nullable=True))
        table.add_column(sa.Column("job_id", sa.String(length=64), nullable=True))
    op.create_index("ix_workers_device_class", "workers", ["device_class"])
