"""Metrics are kept by name: those of checkpoints, and those of a job's evaluation."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

_COLUMNS = ("train_loss", "valid_mean_token_accuracy")  # beside valid_loss, which stays a column: it is sorted by
_HELD_OUT = ("valid_loss", "valid_mean_token_accuracy")
_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
_CHECKPOINTS = sa.table(
    "checkpoints",
    sa.column("id", sa.String),
    sa.column("train_loss", sa.Float),
    sa.column("valid_loss", sa.Float),
    sa.column("valid_mean_token_accuracy", sa.Float),
    sa.column("metrics", _JSON),
)
_JOBS = sa.table("jobs", sa.column("id", sa.String), sa.column("evaluation", _JSON))


def upgrade() -> None:
    """Apply this step."""
    connection = op.get_bind()
    op.add_column("checkpoints", sa.Column("metrics", _JSON, nullable=False, server_default="{}"))
    names = ("train_loss", *_HELD_OUT)
    for row in connection.execute(sa.select(_CHECKPOINTS)).mappings().all():
        metrics = {name: row[name] for name in names if row[name] is not None}
        connection.execute(_CHECKPOINTS.update().where(_CHECKPOINTS.c.id == row["id"]).values(metrics=metrics))
    with op.batch_alter_table("checkpoints") as table:
        for name in _COLUMNS:
            table.drop_column(name)
    _rewrite(_named)


def downgrade() -> None:
    """Take this step back."""
    connection = op.get_bind()
    for name in _COLUMNS:
        op.add_column("checkpoints", sa.Column(name, sa.Float(), nullable=True))
    for row in connection.execute(sa.select(_CHECKPOINTS.c.id, _CHECKPOINTS.c.metrics)).mappings().all():
        values = {name: (row["metrics"] or {}).get(name) for name in _COLUMNS}
        connection.execute(_CHECKPOINTS.update().where(_CHECKPOINTS.c.id == row["id"]).values(values))
    op.drop_column("checkpoints", "metrics")
    _rewrite(_flat)


def _rewrite(change: object) -> None:
    assert callable(change)
    connection = op.get_bind()
    query = sa.select(_JOBS).where(_JOBS.c.evaluation.is_not(None))
    for row in connection.execute(query).mappings().all():
        if row["evaluation"] is None:
            continue
        changed = {name: change(row["evaluation"][name]) for name in ("before", "after")}
        values = row["evaluation"] | changed
        connection.execute(_JOBS.update().where(_JOBS.c.id == row["id"]).values(evaluation=values))


def _named(scores: dict[str, object]) -> dict[str, object]:
    others = {name: value for name, value in scores.items() if name not in _HELD_OUT}
    return others | {"metrics": {name: scores[name] for name in _HELD_OUT if scores.get(name) is not None}}


def _flat(scores: dict[str, object]) -> dict[str, object]:
    metrics = scores["metrics"]
    assert isinstance(metrics, dict)
    others = {name: value for name, value in scores.items() if name != "metrics"}
    return others | {name: metrics.get(name) for name in _HELD_OUT}
