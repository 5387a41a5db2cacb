"""Which models the hub lets this installation download: asked in a thread of its own, remembered for minutes."""

import threading
import time
from dataclasses import dataclass

import structlog

from core.errors import ServiceUnavailableError
from core.registry import hub
from planner import catalogue

REMEMBERED_SECONDS = 300.0
FIRST_ANSWER_SECONDS = 1.0  # that a page waits for the first answer; it goes on without one

log = structlog.get_logger()


@dataclass(frozen=True)
class HubState:
    """What is known of the hub. `problem`: why nothing can be downloaded. `refused`: the catalogue's models whose
    licence was not accepted, by hub id; what is known of their owners until the hub has answered."""

    problem: str | None
    refused: frozenset[str]


class HubAccess:
    """Asks the hub about the catalogue's models, of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = HubState(None, frozenset(_gated()))
        self._asked_at: float | None = None
        self._answered = threading.Event()

    def state(self) -> HubState:
        """What is known now; a question that is due goes out meanwhile."""
        if hub.is_offline():
            return HubState("this installation is offline (HF_HUB_OFFLINE)", frozenset())
        with self._lock:
            is_due = self._asked_at is None or time.monotonic() - self._asked_at > REMEMBERED_SECONDS
            if is_due:
                self._asked_at = time.monotonic()
                threading.Thread(target=self._ask, name="hub-access", daemon=True).start()
        self._answered.wait(FIRST_ANSWER_SECONDS)
        return self._state

    def _ask(self) -> None:
        try:
            self._state = HubState(None, hub.refused_models(_gated()))
        except ServiceUnavailableError as error:
            log.warning("hub_unreachable", cause=str(error))
            self._state = HubState("the model hub does not answer", frozenset())
        finally:
            self._answered.set()


def _gated() -> list[str]:
    return [entry.hub_id for entry in catalogue.models() if entry.is_gated]
