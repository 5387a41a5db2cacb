"""Table of uploaded and produced files."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import EnumText, utc_now
from core.db.claims import Claimable


class FilePurpose(StrEnum):
    """What a file is for. Only `fine-tune` can be uploaded."""

    FINE_TUNE = "fine-tune"
    FINE_TUNE_RESULTS = "fine-tune-results"


class FileStatus(StrEnum):
    """How far the inspection of a file has come."""

    FETCHING = "fetching"  # a worker brings it from the hub; the wire says `uploaded`, as OpenAI's clients know it
    UPLOADED = "uploaded"  # stored, not looked into yet
    PROCESSED = "processed"  # inspected: every row can be used
    ERROR = "error"  # inspected: `status_details` says what is wrong with which row


class StoredFile(Claimable):
    """A file of an organization; its bytes are in the artifact store."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_organization_id_id", "organization_id", "id"),
        Index("ix_files_organization_id_hub_key", "organization_id", "hub_key", unique=True),
    )

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[FilePurpose] = mapped_column(EnumText(FilePurpose, 30))
    size_bytes: Mapped[int] = mapped_column(BigInteger)  # while it is fetched: what the hub says it will be
    sha256: Mapped[str] = mapped_column(String(64))  # "" while it is fetched
    storage_key: Mapped[str] = mapped_column(String(300))
    status: Mapped[FileStatus] = mapped_column(EnumText(FileStatus, 20))
    status_details: Mapped[str | None] = mapped_column(String(2000))
    inspection: Mapped[dict[str, Any] | None]  # core.datasets.inspection.Inspection
    hub_source: Mapped[dict[str, Any] | None]  # core.datasets.hub.HubSource, of a data set of the hub
    hub_key: Mapped[str | None] = mapped_column(String(64))  # a hash of it: one file for each source
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")  # to fetch it, then to inspect it
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
