"""Tables of the books.

The database itself guards them with triggers (migrations 0002 and 0003): transactions and entries are never updated or
deleted; a transaction is accepted only behind the two entries that add up to its amount and to zero, and closes them;
no entry takes an organization's account below zero.
"""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, EnumText, Id, utc_now


class AccountKind(StrEnum):
    """The four kinds of account. Credits only ever move between them."""

    AVAILABLE = "available"  # what an organization can spend
    HELD = "held"  # what its running jobs may cost
    GRANTS = "grants"  # where credits come from; its balance is minus all credits ever granted
    REVENUE = "revenue"  # what jobs have cost


class TransactionKind(StrEnum):
    """Why credits moved."""

    GRANT = "grant"  # a code was redeemed
    HOLD = "hold"  # a job's quote was set aside
    CAPTURE = "capture"  # a job was charged from its hold
    RELEASE = "release"  # the rest of a hold came back
    REFUND = "refund"  # a charge was given back, or a part of it


# From where to where each kind of transaction moves credits.
ROUTES = {
    TransactionKind.GRANT: (AccountKind.GRANTS, AccountKind.AVAILABLE),
    TransactionKind.HOLD: (AccountKind.AVAILABLE, AccountKind.HELD),
    TransactionKind.CAPTURE: (AccountKind.HELD, AccountKind.REVENUE),
    TransactionKind.RELEASE: (AccountKind.HELD, AccountKind.AVAILABLE),
    TransactionKind.REFUND: (AccountKind.REVENUE, AccountKind.AVAILABLE),
}
SYSTEM_ACCOUNTS = (AccountKind.GRANTS, AccountKind.REVENUE)


class LedgerAccount(Base):
    """One account. System accounts have no organization."""

    __tablename__ = "ledger_accounts"
    __table_args__ = (UniqueConstraint("organization_id", "kind"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    kind: Mapped[AccountKind] = mapped_column(EnumText(AccountKind, 20))
    organization_id: Mapped[str | None] = mapped_column(ForeignKey("organizations.id"))


class LedgerTransaction(Base):
    """One movement of credits; its entries sum to zero."""

    __tablename__ = "ledger_transactions"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    kind: Mapped[TransactionKind] = mapped_column(EnumText(TransactionKind, 20))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    idempotency_key: Mapped[str] = mapped_column(String(200), unique=True)
    job_id: Mapped[str | None] = mapped_column(Id, index=True)
    code_id: Mapped[str | None] = mapped_column(Id, index=True)
    amount_credits: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class LedgerEntry(Base):
    """One side of a transaction: credits into (positive) or out of (negative) an account.

    Both sides are written before their transaction, whose row closes them; hence the deferred key.
    """

    __tablename__ = "ledger_entries"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    transaction_id: Mapped[str] = mapped_column(
        ForeignKey("ledger_transactions.id", deferrable=True, initially="DEFERRED"), index=True
    )
    account_id: Mapped[str] = mapped_column(ForeignKey("ledger_accounts.id"), index=True)
    amount_credits: Mapped[int] = mapped_column(BigInteger)


class CreditCode(Base):
    """A word worth credits."""

    __tablename__ = "credit_codes"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    code: Mapped[str] = mapped_column(String(64), unique=True)  # upper case, trimmed
    credits: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime | None]
    max_redemptions: Mapped[int | None]
    per_account: Mapped[int] = mapped_column(default=1)
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class CodeRedemption(Base):
    """One use of a code. The unique ordinals make over-redemption impossible even without a lock."""

    __tablename__ = "code_redemptions"
    __table_args__ = (
        UniqueConstraint("code_id", "ordinal"),
        UniqueConstraint("code_id", "organization_id", "organization_ordinal"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    code_id: Mapped[str] = mapped_column(ForeignKey("credit_codes.id"))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    ordinal: Mapped[int]  # 1, 2, … over all accounts
    organization_ordinal: Mapped[int]  # 1, 2, … within the account
    transaction_id: Mapped[str] = mapped_column(ForeignKey("ledger_transactions.id"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
