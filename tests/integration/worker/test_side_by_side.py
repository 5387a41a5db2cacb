"""One worker runs a job on each of its devices, and a job that takes several gets them together or waits."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from core.db.leases import Holder
from core.fleet import service as fleet
from core.jobs import lease as leases
from core.jobs.models import Job
from core.jobs.states import JobStatus
from planner.devices import Device
from planner.options import RequestedConfig
from planner.setup import Method
from tests.e2e.rows import chat_rows
from tests.integration.worker.installation import CPU, Installation, installation
from tests.waiting import wait_for
from worker.training_worker import TrainingWorker


@dataclass(frozen=True)
class Half(Device):
    """Half of this machine's CPU, as if it were a device of its own."""

    @property
    def address(self) -> str:
        return f"half:{self.index}"


HALVES = [Half(**(vars(CPU) | {"index": index})) for index in range(2)]
LORA = RequestedConfig(method=Method.LORA, n_epochs=1)


@pytest.fixture
def here(tmp_path: Path, models_dir: Path, valkey_url: str) -> Iterator[Installation]:
    with installation(tmp_path, models_dir, valkey_url) as found:
        yield found


def test_two_jobs_run_side_by_side_each_on_a_device_of_its_own(here: Installation) -> None:
    job_ids = {here.submit(chat_rows(), replace(LORA, n_epochs=20)) for _ in range(2)}
    worker = TrainingWorker(here.runtime, HALVES)
    worker._heartbeat.start()
    worker._warm.set()  # the fork server that this process has already
    threads = [threading.Thread(target=worker.work) for _ in HALVES]
    for thread in threads:
        thread.start()

    def both_run() -> bool:
        with here.runtime.database.read() as session:
            places = fleet.driven(session, here.runtime.settings)
            held = {place.row.job_id: place.row.position for place in places if place.worker.id == worker.id}
        return held.keys() == job_ids and set(held.values()) == {0, 1}

    wait_for(both_run, what="both jobs at once")
    for thread in threads:
        thread.join()
    for job_id in job_ids:
        job = here.job(job_id)
        assert (job.status, job.devices) == (JobStatus.SUCCEEDED, None), here.messages(job_id)
    assert [device.address for device in worker.pool.free("cpu")] == ["half:0", "half:1"]
    worker.stop()


def test_a_drain_puts_back_what_every_device_runs(here: Installation) -> None:
    job_ids = [here.submit(chat_rows(), replace(LORA, n_epochs=100)) for _ in range(2)]
    worker = TrainingWorker(here.runtime, HALVES)
    worker._warm.set()
    for _ in HALVES:
        threading.Thread(target=worker.work).start()
    wait_for(lambda: all(here.job(job_id).step for job_id in job_ids), what="a step of each job")
    assert worker.leave() == 0, "by a signal, not by request"
    assert [here.job(job_id).status for job_id in job_ids] == [JobStatus.QUEUED] * 2


def test_a_job_of_two_devices_gets_both_or_waits_and_is_charged_for_both(here: Installation) -> None:
    job_id = here.submit(chat_rows(), LORA)
    database, settings = here.runtime.database, here.runtime.settings
    with database.transaction() as session:
        session.get_one(Job, job_id).device_count = 2

    def claim(*free: str) -> leases.Lease | None:
        claimed = database.run(lambda s: leases.claim_next(s, settings, Holder("w", free), "cpu"))
        return claimed[0] if claimed else None

    assert claim("half:0") is None
    lease = claim("half:0", "half:1", "half:2")
    assert lease is not None
    assert here.job(job_id).devices == ["half:0", "half:1"]
    database.run(lambda session: leases.renew(session, settings, lease, 3.0))
    assert here.job(job_id).used_seconds == 6.0
