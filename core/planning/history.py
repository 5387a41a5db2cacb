"""What this installation's finished runs teach its next plans."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import URL
from sqlalchemy.orm import Session

from core.fleet import service as fleet
from core.jobs import queries
from core.jobs.queries import MeasuredRun
from core.settings import Settings
from planner.calibration import Learned, Observation, correction, speed_calibration
from planner.memory.estimate import Correction
from planner.setup import Method
from planner.throughput import SpeedCalibration

RUNS_REMEMBERED = 1000  # per device class: the newest, which say most of the next


@dataclass(frozen=True)
class _Lesson:
    """The same of one device class, under these versions, up to the newest of its jobs that had succeeded."""

    versions: Mapping[str, str]
    newest: str | None
    corrections: Mapping[Method, Correction]
    speed_calibrations: Mapping[Method, SpeedCalibration]


# Reading a thousand runs takes tens of milliseconds, and they change when a job succeeds: once in many plans. One that
# succeeds behind a newer one is learned from with the next.
_LESSONS: dict[tuple[URL, str], _Lesson] = {}  # by database and device class


def learned(session: Session, settings: Settings) -> Learned:
    """What runs under the library versions that the fleet has now have taught.

    A run counts that succeeded, was alone on its device, and ran as it was predicted: with the planned micro-batch and
    attention, and not compiled.
    """
    corrections: dict[tuple[str, Method], Correction] = {}
    speed_calibrations: dict[tuple[str, Method], SpeedCalibration] = {}
    for device_class, versions in _versions(session, settings).items():
        lesson = _lesson(session, device_class, versions)
        corrections |= {(device_class, method): found for method, found in lesson.corrections.items()}
        speed_calibrations |= {(device_class, method): found for method, found in lesson.speed_calibrations.items()}
    return Learned(corrections, speed_calibrations)


def _versions(session: Session, settings: Settings) -> dict[str, Mapping[str, str]]:
    """The library versions that each device class is trained with."""
    return {place.device_class: place.worker.versions for place in fleet.driven(session, settings)}


def _lesson(session: Session, device_class: str, versions: Mapping[str, str]) -> _Lesson:
    key = session.get_bind().engine.url, device_class
    newest = queries.newest_succeeded(session, device_class)
    lesson = _LESSONS.get(key)
    if lesson is None or (lesson.newest, lesson.versions) != (newest, versions):
        lesson = _LESSONS[key] = _learn(session, device_class, versions, newest)
    return lesson


def _learn(session: Session, device_class: str, versions: Mapping[str, str], newest: str | None) -> _Lesson:
    observed: dict[Method, list[Observation]] = defaultdict(list)
    for run in reversed(queries.measured_runs(session, device_class, RUNS_REMEMBERED)):
        is_as_predicted = run.setup == run.planned_setup and not run.setup.get("torch_compile") and _teaches(run)
        if run.measured.get("versions") == versions and is_as_predicted:
            observed[Method(run.setup["method"])].append(_observation(run))
    return _Lesson(
        versions,
        newest,
        {method: correction(runs) for method, runs in observed.items()},
        {method: speed_calibration(runs) for method, runs in observed.items()},
    )


def _teaches(run: MeasuredRun) -> bool:
    return all(run.measured.get(name, True) for name in ("is_attributed", "as_planned"))


def _observation(run: MeasuredRun) -> Observation:
    """The run against its *uncorrected* predictions, so that a correction does not erase itself."""
    return Observation(
        round(run.predicted_bytes / (run.memory_ratio or 1.0)),
        int(run.measured["device_bytes"]),
        run.predicted_step_seconds / (run.pace_ratio or 1.0),
        run.step_seconds,
    )
