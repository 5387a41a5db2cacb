"""Which models of the catalogue the hub opens to whom: asked in a thread of its own, remembered for minutes."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import structlog

from core.errors import InvalidRequestError, ServiceUnavailableError
from core.hub_access import HubAccess
from core.registry import hub
from planner import catalogue

REMEMBERED_SECONDS = 300.0
REMEMBERED = 256  # accesses
FIRST_ANSWER_SECONDS = 1.0  # that a page waits for the first answer; it goes on without one

log = structlog.get_logger()


@dataclass(frozen=True)
class HubState:
    """What is known of the hub. `problem`: why nothing can be downloaded. `refused`: the catalogue's models whose
    licence was not accepted, by hub id; what is known of their owners until the hub has answered."""

    problem: str | None
    refused: frozenset[str]


@dataclass
class _Known:
    state: HubState
    asked_at: float | None = None
    answered: threading.Event = field(default_factory=threading.Event)


class HubStates:
    """Asks the hub about the catalogue's models, of one process, for each access apart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[HubAccess, _Known] = OrderedDict()

    def state(self, access: HubAccess) -> HubState:
        """What is known now; a question that is due goes out meanwhile."""
        if hub.is_offline():
            return HubState("this installation is offline (HF_HUB_OFFLINE)", frozenset())
        with self._lock:
            known = self._known.setdefault(access, _Known(HubState(None, frozenset(_gated()))))
            self._known.move_to_end(access)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            if known.asked_at is None or time.monotonic() - known.asked_at > REMEMBERED_SECONDS:
                known.asked_at = time.monotonic()
                threading.Thread(target=_ask, args=(known, access), name="hub-state", daemon=True).start()
        known.answered.wait(FIRST_ANSWER_SECONDS)
        return known.state


def _ask(known: _Known, access: HubAccess) -> None:
    try:
        known.state = HubState(None, hub.refused_models(_gated(), access))
    except ServiceUnavailableError as error:
        log.warning("hub_unreachable", cause=str(error))
        known.state = HubState("the model hub does not answer", frozenset())
    except InvalidRequestError:
        known.state = HubState("the hub does not take this organization's hub token", frozenset())
    finally:
        known.answered.set()


def _gated() -> list[str]:
    return [entry.hub_id for entry in catalogue.models() if entry.is_gated]
