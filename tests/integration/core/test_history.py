"""Finished jobs of this installation correct its next plans, on both databases."""

from dataclasses import asdict, replace

import pytest

from core.accounts.service import ensure_owner
from core.db.base import utc_now
from core.db.serialization import deserialize, serialize
from core.db.session import Database
from core.fleet import service as fleet
from core.fleet.models import WorkerRow
from core.fleet.service import DeviceReport, WorkerReport
from core.ids import new_id
from core.jobs import queries
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.planning import history
from core.plans.models import Plan
from core.settings import Settings
from planner.catalogue import find_model
from planner.devices import Device, parse_gpu
from planner.memory.estimate import Correction
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.policy.candidates import Question
from planner.policy.choice import TrainingPlan, plan, step_down
from planner.setup import Method
from planner.statistics import DatasetStatistics
from planner.throughput import SpeedCalibration
from planner.wording import sentences

VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"}
GPU = parse_gpu("RTX 4090")
STATISTICS = DatasetStatistics(1000, 400_000, 200_000, (400,) * 100)


def planned(device: Device = GPU, method: Method = Method.LORA, **changes: object) -> TrainingPlan:
    entry = find_model("llama-3.2-1b-instruct")
    assert entry is not None
    spec = ModelSpec.from_config(entry.config)
    return plan(Question(spec, STATISTICS, [device], RequestedConfig(method=method), {"default": 1000}, **changes))  # type: ignore[arg-type]


@pytest.fixture
def owner(database: Database) -> tuple[str, str]:
    with database.transaction() as session:
        user = ensure_owner(session)
        return user.organization_id, user.id


def report_worker(database: Database, versions: dict[str, str]) -> None:
    with database.transaction() as session:
        fleet.report(session, WorkerReport("worker-1", "host", 1, [DeviceReport(GPU)], versions))


def finished_job(
    owner: tuple[str, str],
    ran: TrainingPlan,
    ratio: float,
    *,
    versions: dict[str, str] | None = None,
    status: JobStatus = JobStatus.SUCCEEDED,
    stepped_down: bool = False,
    seconds_ratio: float | None = None,
    **measured_as: bool,
) -> tuple[Plan, Job]:
    """A job that took `ratio` of what was predicted, uncorrected."""
    organization_id, user_id = owner
    measured = round(ran.memory.uncorrected_bytes * ratio)
    setup = step_down(ran.setup) if stepped_down else ran.setup
    assert setup is not None
    row = Plan(
        id=new_id("plan_"), organization_id=organization_id, model="m", training_file_id="file-1",
        data_format={}, statistics={}, plan=serialize(ran), quote_credits=ran.credits, expires_at=utc_now(),
    )  # fmt: skip
    job = Job(
        id=new_id("ftjob-"), organization_id=organization_id, user_id=user_id, model="m", training_file_id="file-1",
        seed=1, plan_id=row.id, setup=serialize(setup), device_class=ran.device.device_class,
        quote_credits=ran.credits, status=status,
        step_seconds=None if seconds_ratio is None else ran.speed.unpaced_step_seconds * seconds_ratio,
        memory_measured={
            "when": "end", "peak_allocated_bytes": 1, "peak_reserved_bytes": 1, "device_bytes": measured,
            "versions": versions or VERSIONS, **measured_as,
        },
    )  # fmt: skip
    return row, job


def store(database: Database, jobs: list[tuple[Plan, Job]]) -> None:
    with database.transaction() as session:
        session.add_all(row for row, _ in jobs)
        session.flush()
        session.add_all(job for _, job in jobs)


def learned(database: Database, settings: Settings) -> dict[tuple[str, Method], Correction]:
    with database.read() as session:
        return dict(history.learned(session, settings).corrections)


def test_nothing_is_learned_from_nothing(database: Database, settings: Settings) -> None:
    report_worker(database, VERSIONS)
    assert learned(database, settings) == {}


def test_finished_runs_move_the_prediction_and_enough_of_them_the_bound(
    database: Database, settings: Settings, owner: tuple[str, str]
) -> None:
    report_worker(database, VERSIONS)
    ran = planned()
    store(database, [finished_job(owner, ran, 0.9 + 0.0001 * (i % 10)) for i in range(40)])
    some = learned(database, settings)[GPU.device_class, Method.LORA]
    assert some.ratio == pytest.approx(0.9, abs=0.001)
    assert (some.bound_share, some.runs) == (None, 40)
    store(database, [finished_job(owner, ran, 0.9 + 0.0001 * (i % 10)) for i in range(160)])
    all_of_them = learned(database, settings)
    many = all_of_them[GPU.device_class, Method.LORA]
    assert many.runs == 200
    assert many.bound_share is not None
    assert 0 <= many.bound_share < 0.01
    now = planned(corrections=all_of_them)
    assert now.memory.required_bytes < ran.memory.required_bytes
    assert any("200 finished runs" in reason and "99%" in reason for reason in sentences(now.reasons))
    assert deserialize(TrainingPlan, serialize(now)) == now


def test_corrected_plans_are_compared_with_their_uncorrected_prediction(
    database: Database, settings: Settings, owner: tuple[str, str]
) -> None:
    """Else the second generation would learn a ratio of 1 and forget what the first had taught."""
    report_worker(database, VERSIONS)
    taught = {(GPU.device_class, Method.LORA): Correction(0.9, None, 40)}
    corrected = planned(corrections=taught)
    assert corrected.memory.correction == taught[GPU.device_class, Method.LORA]
    store(database, [finished_job(owner, corrected, 0.9) for _ in range(20)])
    assert learned(database, settings)[GPU.device_class, Method.LORA].ratio == pytest.approx(0.9, abs=0.001)


def test_only_runs_that_are_alike_teach(database: Database, settings: Settings, owner: tuple[str, str]) -> None:
    report_worker(database, VERSIONS)
    ran, elsewhere = planned(), planned(parse_gpu("A100-80GB"))
    compiled = replace(ran, setup=replace(ran.setup, torch_compile=True))
    stepped = replace(ran, setup=replace(ran.setup, per_device_train_batch_size=4))
    store(
        database,
        [finished_job(owner, ran, 1.5, versions=VERSIONS | {"torch": "2.0.0"}) for _ in range(30)]
        + [finished_job(owner, ran, 1.5, status=JobStatus.FAILED) for _ in range(30)]
        + [finished_job(owner, stepped, 1.5, stepped_down=True) for _ in range(30)]
        + [finished_job(owner, compiled, 1.5) for _ in range(30)]
        + [finished_job(owner, elsewhere, 1.5) for _ in range(30)]
        + [finished_job(owner, ran, 1.5, is_attributed=False, as_planned=True) for _ in range(30)]
        + [finished_job(owner, ran, 1.5, is_attributed=True, as_planned=False) for _ in range(30)]
        + [finished_job(owner, planned(method=Method.QLORA), 0.8) for _ in range(30)],
    )
    taught = learned(database, settings)
    assert set(taught) == {(GPU.device_class, Method.QLORA)}
    assert taught[GPU.device_class, Method.QLORA].ratio == pytest.approx(0.8, abs=0.001)
    assert asdict(taught[GPU.device_class, Method.QLORA])["runs"] == 30


def speed_calibrations(database: Database, settings: Settings) -> dict[tuple[str, Method], SpeedCalibration]:
    with database.read() as session:
        return dict(history.learned(session, settings).speed_calibrations)


def test_measured_steps_correct_the_speed_once_there_are_enough(
    database: Database, settings: Settings, owner: tuple[str, str]
) -> None:
    report_worker(database, VERSIONS)
    ran, key = planned(), (GPU.device_class, Method.LORA)
    store(database, [finished_job(owner, ran, 1.0, seconds_ratio=1.5) for _ in range(9)])
    assert speed_calibrations(database, settings)[key] == SpeedCalibration(1.0, 9)
    store(database, [finished_job(owner, ran, 1.0) for _ in range(5)])  # of which no step was timed
    store(database, [finished_job(owner, ran, 1.0, seconds_ratio=1.5)])
    taught = speed_calibrations(database, settings)
    assert taught[key] == SpeedCalibration(pytest.approx(1.5), 10)
    slower = planned(speed_calibrations=taught)
    assert slower.speed.tokens_per_second == pytest.approx(ran.speed.tokens_per_second / 1.5)
    assert slower.quote.predicted_seconds > ran.quote.predicted_seconds
    assert any("10 finished runs like it here took 1.50 times" in reason for reason in sentences(slower.reasons))
    store(database, [finished_job(owner, slower, 1.0, seconds_ratio=1.5) for _ in range(20)])
    assert speed_calibrations(database, settings)[key].ratio == pytest.approx(1.5)  # of what was predicted without it


def test_lessons_are_read_again_when_a_job_has_succeeded_and_not_before(
    database: Database, settings: Settings, owner: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = queries.measured_runs
    monkeypatch.setattr(queries, "measured_runs", lambda *arguments: reads.append(1) or read(*arguments))
    report_worker(database, VERSIONS)
    ran = planned()
    store(database, [finished_job(owner, ran, 1.1) for _ in range(20)])
    first = learned(database, settings)
    assert (learned(database, settings), len(reads)) == (first, 1)
    store(database, [finished_job(owner, ran, 1.3) for _ in range(60)])
    assert learned(database, settings)[GPU.device_class, Method.LORA].ratio == pytest.approx(1.3, abs=0.01)
    with database.transaction() as session:
        worker = session.get(WorkerRow, "worker-1")
        assert worker is not None
        worker.versions = VERSIONS | {"torch": "2.14.0"}
    assert learned(database, settings) == {}
    assert len(reads) == 3
