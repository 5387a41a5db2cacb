"""Table of what organizations store, day by day: what is deleted later was stored all the same."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base


class StorageDay(Base):
    """The most bytes that an organization stored on one day, as far as was looked."""

    __tablename__ = "storage_days"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    day: Mapped[datetime] = mapped_column(primary_key=True)  # its beginning, UTC
    most_bytes: Mapped[int] = mapped_column(BigInteger)
