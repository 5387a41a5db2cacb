"""Jobs keep what they are measured on; plans what was asked for, and how many rows are held out instead of a share."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_PLANS = sa.table("plans", sa.column("id", sa.String()), sa.column("statistics", _JSON), sa.column("plan", _JSON))
_MOST_HELD_OUT = 512


def upgrade() -> None:
    """Apply this step."""
    op.add_column("jobs", sa.Column("held_out", _JSON, nullable=True))
    op.add_column("plans", sa.Column("wishes", _JSON, nullable=True))
    connection = op.get_bind()
    for plan_id, statistics, plan in connection.execute(sa.select(_PLANS)).all():
        share = plan["hyperparameters"].pop("evaluation_fraction", None)
        if share is None:
            continue
        rows = statistics["examples"]
        held_out = max(0, min(int(rows * share), _MOST_HELD_OUT, rows - 1))
        plan["hyperparameters"]["held_out_rows"] = 0 if statistics["validation_examples"] else held_out
        connection.execute(_PLANS.update().where(_PLANS.c.id == plan_id).values(plan=plan))


def downgrade() -> None:
    """Take this step back. In place on SQLite too: other tables refer to these."""
    op.drop_column("plans", "wishes")
    op.drop_column("jobs", "held_out")
