"""The books are append-only: the database itself refuses to change or delete what was booked."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = ("ledger_transactions", "ledger_entries")
CHANGES = ("update", "delete")


def upgrade() -> None:
    """Apply this step."""
    postgresql = op.get_bind().dialect.name == "postgresql"
    if postgresql:
        op.execute(
            "create function refuse_change() returns trigger language plpgsql as "
            "$$ begin raise exception '% is append-only', tg_table_name; end $$"
        )
    for table in TABLES:
        for change in CHANGES:
            body = (
                "for each statement execute function refuse_change()"
                if postgresql
                else f"begin select raise(abort, '{table} is append-only'); end"
            )
            op.execute(f"create trigger {table}_no_{change} before {change} on {table} {body}")


def downgrade() -> None:
    """Take this step back."""
    postgresql = op.get_bind().dialect.name == "postgresql"
    for table in TABLES:
        for change in CHANGES:
            op.execute(f"drop trigger {table}_no_{change}" + (f" on {table}" if postgresql else ""))
    if postgresql:
        op.execute("drop function refuse_change()")
