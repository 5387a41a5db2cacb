"""One training worker: the devices of one machine, a job on each, and a heartbeat that says so."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version

import psutil
import structlog
from celery.signals import worker_ready, worker_shutdown
from sqlalchemy.exc import SQLAlchemyError

from core.db.leases import Holder
from core.db.migrate import schema_problem
from core.disk import disk_space
from core.fleet import service as fleet
from core.fleet.service import DRAINED_EXIT_CODE, DeviceReport, WorkerReport
from core.hang_guard import Pulse, end_when_silent
from core.ids import new_id
from core.jobs import lease as leases
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.outage_log import OutageLog
from core.queue.messages import RUN_JOB, training_queue
from core.runtime import Runtime
from planner.devices import Device
from planner.errors import DriverError
from worker import fork_server
from worker.app import create_app, serve
from worker.fork_server import ForkServerError
from worker.machine import find_device
from worker.pool import DevicePool, Reading
from worker.supervisor import Supervisor

REPORTED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
log = structlog.get_logger()


def run(runtime: Runtime, device_names: Sequence[str]) -> None:
    """Serve the queues of these devices' classes until told to stop. Raises SystemExit where one is not there."""
    devices = [find_device(name) for name in dict.fromkeys(device_names)]
    if any(device.kind == "cuda" for device in devices):
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a library that asks for GPUs does not initialise CUDA
    # Threads that spin at OpenMP's barriers for long take the cores from those that still work, as soon as anything
    # else wants a core (6x slower steps by default); threads that never spin cost 15-20% of an idle machine's speed.
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = "100000"  # about a millisecond
    fork_server.start_fork_server()
    worker = TrainingWorker(runtime, devices)
    end_when_silent("heartbeat", worker.pulse, runtime.settings.hang_seconds)

    app = create_app(runtime.settings)

    @app.task(name=RUN_JOB)
    def run_job(_nudged_for: str) -> None:
        worker.work()

    worker_ready.connect(lambda **_: worker.start(), weak=False)
    worker_shutdown.connect(lambda **_: worker.stop(), weak=False)
    serve(
        app,
        name=worker.id,
        queues=[training_queue(name) for name in worker.pool.device_classes],
        concurrency=worker.pool.size,
        log_level=runtime.settings.log_level,
        end_work=worker.leave,
    )
    if worker.is_drained:
        sys.exit(DRAINED_EXIT_CODE)


class TrainingWorker:
    """What a training worker remembers between jobs."""

    def __init__(self, runtime: Runtime, devices: Sequence[Device]) -> None:
        self.id = new_id("worker-")
        self.pool = DevicePool(devices)
        self.pulse = Pulse()  # of its heartbeat
        self.is_drained = False  # by request, rather than by a signal
        self._runtime = runtime
        self._supervisors: dict[str, Supervisor] = {}  # of what runs now, by the address of each device
        self._draining = threading.Event()
        self._warm = threading.Event()
        self._claiming = threading.Lock()
        self._reporting = threading.Lock()  # the first report makes the worker's row
        self._changed = threading.Condition()
        self._at_work = 0  # threads that claim or run jobs
        self._reports = OutageLog("heartbeat_failed", "heartbeat_works_again")
        self._versions = {package: version(package) for package in REPORTED_PACKAGES}
        self._heartbeat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """When the fork server has imported the training libraries, report for duty and look for waiting jobs."""
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def work(self) -> None:
        """Run queued jobs, one after another, until there is none that fits a device which is free."""
        self._warm.wait()
        with self._counted():
            while not self._draining.is_set() and self._is_of_this_release():
                with ExitStack() as reservation:
                    with self._claiming:  # one at a time: what is free is not offered twice
                        claimed = self._claim()
                        if claimed is None:
                            return
                        lease, job = claimed
                        devices = reservation.enter_context(self.pool.held(job.devices or ()))
                    self._run(lease, job, devices)

    def _claim(self) -> tuple[Lease, Job] | None:
        """The next job of any class of which devices are free, with some of those; None where there is none."""
        settings = self._runtime.settings
        for device_class in self.pool.device_classes:
            free = [device.address for device in self.pool.free(device_class)]
            if free:
                claim = partial(
                    leases.claim_next, settings=settings, holder=Holder(self.id, free), device_class=device_class
                )
                if (claimed := self._runtime.database.run(claim)) is not None:
                    return claimed
        return None

    def _run(self, lease: Lease, job: Job, devices: Sequence[Device]) -> None:
        structlog.contextvars.bind_contextvars(job_id=job.id, organization=job.organization_id, worker=self.id)
        supervisor = Supervisor(self._runtime, lease, job, devices)
        self._supervisors |= {device.address: supervisor for device in devices}
        if self._draining.is_set():
            supervisor.drain()
        try:
            self._beat_once()
            supervisor.supervise()
        except ForkServerError as error:
            self._end_as_unfit(error)
        finally:
            for device in devices:
                del self._supervisors[device.address]
            structlog.contextvars.unbind_contextvars("job_id", "organization", "worker")
            self._beat_once()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Within, this thread may hold jobs, which a shutdown waits for."""
        with self._changed:
            self._at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    def _is_of_this_release(self) -> bool:
        """Whether the database still is; where it was migrated under us, this worker leaves its jobs to newer ones."""
        problem = schema_problem(self._runtime.database)
        if problem is not None:
            log.error("schema_of_another_release", problem=problem)
            os.kill(os.getpid(), signal.SIGTERM)
        return problem is None

    def drain(self) -> None:
        """Claim no more; stop the running jobs after a checkpoint so that another worker can go on with them."""
        self._draining.set()
        for supervisor in list(self._supervisors.values()):
            supervisor.drain()

    def leave(self) -> int:
        """Drain, wait until the running jobs have been put back, and sign off; returns the exit code."""
        self.drain()
        with self._changed:
            self._changed.wait_for(lambda: self._at_work == 0)
        self.stop()
        return DRAINED_EXIT_CODE if self.is_drained else 0

    def stop(self) -> None:
        """Sign off."""
        self._draining.set()
        if self._heartbeat.is_alive():
            self._heartbeat.join(timeout=self._runtime.settings.heartbeat_seconds)
        self._runtime.database.run(lambda session: fleet.stop(session, self.id))

    def _warm_up(self) -> None:
        try:
            fork_server.warm_up()
        except ForkServerError as error:
            self._end_as_unfit(error)
            return
        self._warm.set()
        names = [reading.device.name for reading in self.pool.read()]
        log.info("worker_ready", worker=self.id, devices=names, device_classes=self.pool.device_classes)
        self._heartbeat.start()
        for number in range(self.pool.size):
            threading.Thread(target=self.work, name=f"first-jobs-{number}", daemon=True).start()

    def _end_as_unfit(self, error: ForkServerError) -> None:
        log.error("fork_server_unfit", error=str(error))
        os.kill(os.getpid(), signal.SIGTERM)

    def _beat(self) -> None:
        while True:
            self.pulse.beat()
            self._beat_once()
            with self.pulse.resting():
                is_over = self._draining.wait(self._runtime.settings.heartbeat_seconds)
            if is_over:
                self.pulse.retire()
                return

    def _beat_once(self) -> None:
        """Report; what fails is said, and the next beat tries again: a report lost is no reason to lose a worker."""
        try:
            with self._reporting:
                self._report()
        except SQLAlchemyError as error:
            self._reports.away(getattr(error, "orig", None) or error)
        except (DriverError, OSError, psutil.Error) as error:
            self._reports.away(error)
        else:
            self._reports.back()

    def _report(self) -> None:
        disk = disk_space(self._runtime.settings.runs_dir)
        said = WorkerReport(
            worker_id=self.id,
            hostname=os.uname().nodename,
            process_id=os.getpid(),
            devices=[self._report_of(reading) for reading in self.pool.read()],
            versions=self._versions,
            disk_free_bytes=disk.free_bytes,
            disk_total_bytes=disk.total_bytes,
        )
        if self._runtime.database.run(lambda session: fleet.report(session, said)) and not self.is_drained:
            self.is_drained = True
            os.kill(os.getpid(), signal.SIGTERM)  # drains as any other shutdown does

    def _report_of(self, reading: Reading) -> DeviceReport:
        supervisor = self._supervisors.get(reading.device.address)
        return DeviceReport(
            device=reading.device,
            used_bytes=reading.used_bytes,
            tokens_per_second=supervisor.tokens_per_second if supervisor else None,
            job_id=supervisor.job_id if supervisor else None,
        )
