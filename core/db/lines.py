"""Log lines about what a transaction did leave only after its commit, as messages do: one rolled back did nothing."""

from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.orm import Session

__all__ = ["say_after_commit", "say_collected"]

_KEY = "log_lines"

log = structlog.get_logger()


@dataclass(frozen=True)
class _Line:
    event: str
    level: str
    facts: dict[str, Any]


def say_after_commit(session: Session, event: str, *, level: str = "info", **facts: Any) -> None:
    """Log `event` once this session's transaction is committed; never, if it rolls back."""
    lines: list[_Line] = session.info.setdefault(_KEY, [])
    lines.append(_Line(event, level, facts))


def say_collected(session: Session) -> None:
    """Log what was collected by the session, whose transaction is committed."""
    lines: list[_Line] = session.info.pop(_KEY, [])
    for line in lines:
        getattr(log, line.level)(line.event, **line.facts)
