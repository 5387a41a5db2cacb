"""The books balance by constraint: a transaction closes two entries that add up, and no account goes below zero.

Neither database can check a sum when a row is inserted, and SQLite has no triggers that wait for the commit. So both
entries come first, under a key that is checked at the commit, and the row of their transaction is refused unless they
are exactly its two sides. Behind a transaction no entry can be added, and an entry without a transaction cannot be
committed: every set of entries that is ever committed sums to zero.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = "fk_ledger_entries_transaction_id_ledger_transactions"

# Each condition is true of a row that must be refused.
UNBALANCED = """
    new.amount_credits < 0
    or (select count(*) from ledger_entries where transaction_id = new.id) <> 2
    or (select min(amount_credits) from ledger_entries where transaction_id = new.id) <> -new.amount_credits
    or (select max(amount_credits) from ledger_entries where transaction_id = new.id) <> new.amount_credits
"""
CLOSED = "exists (select 1 from ledger_transactions where id = new.transaction_id)"
OVERDRAWN = """
    new.amount_credits < 0
    and (select organization_id from ledger_accounts where id = new.account_id) is not null
    and (select coalesce(sum(amount_credits), 0) from ledger_entries where account_id = new.account_id)
        + new.amount_credits < 0
"""
RULES = (
    ("ledger_transactions_balance", "ledger_transactions", UNBALANCED, "a transaction needs two entries that add up"),
    ("ledger_entries_closed", "ledger_entries", CLOSED, "the transaction is closed"),
    ("ledger_entries_overdrawn", "ledger_entries", OVERDRAWN, "a balance cannot go below zero"),
)
APPEND_ONLY = "begin select raise(abort, 'ledger_entries is append-only'); end"


def upgrade() -> None:
    """Apply this step."""
    _defer_key(True)
    for name, table, condition, message in RULES:
        if _is_postgresql():
            # Two sessions could otherwise each see a sum that leaves room for one of them.
            lock = (
                "perform 1 from ledger_accounts where id = new.account_id for no key update;"
                if condition is OVERDRAWN
                else ""
            )
            op.execute(
                f"create function {name}() returns trigger language plpgsql as $$ begin {lock} if {condition} then "
                f"raise exception '{message}'; end if; return new; end $$"
            )
            op.execute(f"create trigger {name} before insert on {table} for each row execute function {name}()")
        else:
            op.execute(
                f"create trigger {name} before insert on {table} when {condition} "
                f"begin select raise(abort, '{message}'); end"
            )


def downgrade() -> None:
    """Take this step back."""
    for name, table, _, _ in RULES:
        op.execute(f"drop trigger {name}" + (f" on {table}" if _is_postgresql() else ""))
        if _is_postgresql():
            op.execute(f"drop function {name}()")
    _defer_key(False)


def _defer_key(deferred: bool) -> None:
    with op.batch_alter_table("ledger_entries") as table:
        table.drop_constraint(KEY, type_="foreignkey")
        table.create_foreign_key(
            KEY,
            "ledger_transactions",
            ["transaction_id"],
            ["id"],
            deferrable=True if deferred else None,
            initially="DEFERRED" if deferred else None,
        )
    if not _is_postgresql():  # SQLite made the table anew, and its triggers went with the old one
        for change in ("update", "delete"):
            op.execute(f"create trigger ledger_entries_no_{change} before {change} on ledger_entries {APPEND_ONLY}")


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"
