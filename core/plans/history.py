"""What this installation's finished runs teach its next plans."""

from collections import defaultdict

from sqlalchemy.orm import Session

from core.db.plain import from_plain
from core.fleet import service as fleet
from core.jobs import queries
from core.jobs.queries import MeasuredRun
from core.settings import Settings
from planner.calibration import Observation, correction
from planner.candidates import Corrections
from planner.memory import Correction, MemoryEstimate
from planner.setup import Method

RUNS_REMEMBERED = 1000  # per device class: the newest, which say most of the next


def corrections(session: Session, settings: Settings) -> Corrections:
    """Corrections by device class and method, from runs under the library versions that the fleet has now.

    A run counts that succeeded, was measured, and kept its planned micro-batch: a smaller one was not predicted.
    """
    learned: dict[tuple[str, Method], Correction] = {}
    versions = {row.device_class: row.versions for row in fleet.workers(session, settings)}
    for device_class, installed in versions.items():
        observed: dict[Method, list[Observation]] = defaultdict(list)
        for run in reversed(queries.measured_runs(session, device_class, RUNS_REMEMBERED)):
            if run.measured.get("versions") == installed and run.setup == run.planned_setup:
                observed[Method(run.setup["method"])].append(_observation(run))
        learned |= {(device_class, method): correction(runs) for method, runs in observed.items()}
    return learned


def _observation(run: MeasuredRun) -> Observation:
    predicted = from_plain(MemoryEstimate, run.predicted)
    return Observation(predicted.uncorrected_bytes, int(run.measured["device_bytes"]))
