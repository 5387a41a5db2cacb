"""Whether the parts that the service stands on answer, each within its own time.

A part that hangs keeps one thread of this process and no more: who asks meanwhile hears for how long it has hung.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError, ResponseError
from sqlalchemy.exc import DBAPIError

from core.db.base import utc_now
from core.db.migrate import schema_problem
from core.db.session import is_read_only
from core.errors import StoreError
from core.fleet import programs
from core.fleet.models import ProgramRow, ProgramStatus
from core.runtime import Runtime

PART_SECONDS = 4.0  # below the five seconds that load balancers commonly wait
SWEEPS_MISSED = 6  # a sweep is late after this many
_TROUBLED = (ProgramStatus.RESTARTING, ProgramStatus.FAILED)

log = structlog.get_logger()


@dataclass(frozen=True)
class State:
    """What a readiness check found. `problems` keep the service from working, `warnings` do not."""

    problems: list[str]
    warnings: list[str]
    swept_at: int | None


@dataclass
class _Asking:
    """One question in a thread of its own."""

    started_at: float
    ended: threading.Event = field(default_factory=threading.Event)
    problem: str | None = None
    seconds: float = 0.0  # that the answer took


@dataclass(frozen=True)
class Measured:
    """How a part answers now. `seconds`: how long that took, or has taken so far."""

    name: str
    is_up: bool
    seconds: float


class Part:
    """A part of the service. `ask` returns what is wrong with it, or raises one of the `expected` errors."""

    def __init__(
        self, name: str, ask: Callable[[], str | None], expected: type[Exception], limit_seconds: float = PART_SECONDS
    ) -> None:
        self._name = name
        self._ask = ask
        self._expected = expected
        self._limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._asking: _Asking | None = None
        self._trouble: str | None = None  # the kind last logged
        self._troubled_since = 0.0

    def begin(self) -> Callable[[], str | None]:
        """Ask, unless it is being asked; the function returned waits for the answer: a problem, or None."""
        asking = self._ask_unless_asked()
        return lambda: self._wait(asking)

    def begin_measuring(self) -> Callable[[], Measured]:
        """As `begin`, with how long the answer took."""
        asking = self._ask_unless_asked()

        def measured() -> Measured:
            problem = self._wait(asking)
            seconds = asking.seconds if asking.ended.is_set() else time.monotonic() - asking.started_at
            return Measured(self._name, problem is None, seconds)

        return measured

    def _ask_unless_asked(self) -> _Asking:
        with self._lock:
            if self._asking is None or self._asking.ended.is_set():
                self._asking = _Asking(time.monotonic())
                threading.Thread(target=self._answer, args=(self._asking,), name=self._name, daemon=True).start()
            return self._asking

    def _answer(self, asking: _Asking) -> None:
        try:
            asking.problem = self._ask()
            self._say(asking.problem, asking.problem)
        except self._expected as error:
            asking.problem = f"the {self._name} does not answer ({type(error).__name__})"
            self._say(type(error).__name__, str(error))
        finally:
            asking.seconds = time.monotonic() - asking.started_at
            asking.ended.set()

    def _wait(self, asking: _Asking) -> str | None:
        deadline = asking.started_at + self._limit_seconds
        if asking.ended.wait(max(0.0, deadline - time.monotonic())):
            return asking.problem
        seconds = time.monotonic() - asking.started_at
        self._say("no answer", f"no answer for {seconds:.0f} s")
        return f"the {self._name} has not answered for {seconds:.0f} s"

    def _say(self, trouble: str | None, cause: str | None) -> None:
        """Log what is wrong when it begins or becomes another, and its end: not at every question."""
        with self._lock:
            before, self._trouble = self._trouble, trouble
            now = time.monotonic()
            if before is None:
                self._troubled_since = now
        if trouble is not None and trouble != before:
            log.warning("part_not_ready", part=self._name, cause=cause)
        elif trouble is None and before is not None:
            log.info("part_ready_again", part=self._name, after_seconds=round(now - self._troubled_since, 1))


class Readiness:
    """Asks all parts of one API process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._warnings: list[str] = []
        self._swept_at: int | None = None
        self._parts = (
            Part("database", self._ask_database, DBAPIError),
            Part("broker", self._ask_broker, RedisError),
            Part("store", runtime.store.check, StoreError),
        )

    def check(self) -> State:
        """Ask every part, side by side."""
        answers = [part.begin() for part in self._parts]
        problems = [problem for answer in answers if (problem := answer()) is not None]
        return State(problems, self._warnings, self._swept_at)

    def measure(self) -> list[Measured]:
        """How every part answers, asked side by side."""
        answers = [part.begin_measuring() for part in self._parts]
        return [answer() for answer in answers]

    def _ask_broker(self) -> str | None:
        try:
            self._runtime.publisher.ping()
        except ResponseError as error:  # it answers, and has no room on its disk
            return f"the broker takes no messages ({error})"
        return None

    def _ask_database(self) -> str | None:
        problem = schema_problem(self._runtime.database)
        if problem is None:
            with self._runtime.database.read() as session:
                sweep = programs.last_sweep(session)
                if is_read_only(session):
                    problem = "the database takes no writes: it is read-only"
                troubled = [row for row in programs.programs(session) if row.status in _TROUBLED]
            self._warnings = [_trouble(row) for row in troubled]
            self._swept_at = int(sweep.finished_at.timestamp()) if sweep else None
            age = (utc_now() - sweep.finished_at).total_seconds() if sweep else None
            if age is None:
                self._warnings.append("the sweep has not run yet: is a maintenance worker up?")
            elif age > SWEEPS_MISSED * self._runtime.settings.sweep_seconds + (sweep.seconds if sweep else 0):
                self._warnings.append(f"the sweep last ran {age:.0f} s ago: is a maintenance worker up?")
        return problem


def _trouble(row: ProgramRow) -> str:
    if row.status is ProgramStatus.FAILED:
        return f"{row.name} failed with {row.last_ending}"
    return f"{row.name} ended with {row.last_ending} and is started again ({row.restarts} times so far)"
