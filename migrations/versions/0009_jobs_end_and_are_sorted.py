"""Jobs can be deleted, and remember their newest validation loss, which they are sorted by."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_JOBS = sa.table("jobs", sa.column("id", sa.String), sa.column("valid_loss", sa.Float))
_EVENTS = sa.table(
    "job_events",
    sa.column("job_id", sa.String),
    sa.column("sequence", sa.Integer),
    sa.column("type", sa.String),
    sa.column("data", sa.JSON().with_variant(JSONB(), "postgresql")),
)


def upgrade() -> None:
    """Apply this step: jobs that have run already get the loss that their events hold."""
    op.add_column("jobs", sa.Column("valid_loss", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    loss = _EVENTS.c.data["valid_loss"].as_float()
    newest = (
        sa.select(loss)
        .where(_EVENTS.c.job_id == _JOBS.c.id, _EVENTS.c.type == "metrics", loss.is_not(None))
        .order_by(_EVENTS.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )
    op.execute(_JOBS.update().values(valid_loss=newest))


def downgrade() -> None:
    """Take this step back. In place on SQLite too: other tables refer to jobs."""
    op.drop_column("jobs", "deleted_at")
    op.drop_column("jobs", "valid_loss")
