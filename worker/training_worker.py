"""One training worker: one device, one job at a time, a heartbeat that says so."""

import os
import signal
import sys
import threading
from dataclasses import replace
from importlib.metadata import version

import psutil
import structlog
from celery.signals import worker_ready, worker_shutdown
from sqlalchemy.exc import SQLAlchemyError

from core.db.migrate import schema_problem
from core.disk import disk_space
from core.fleet import service as fleet
from core.fleet.service import DRAINED_EXIT_CODE, WorkerReport
from core.hang_guard import Pulse, end_when_silent
from core.ids import new_id
from core.jobs import lease as leases
from core.outage_log import OutageLog
from core.queue.messages import RUN_JOB, training_queue
from core.runtime import Runtime
from planner.devices import Device
from planner.errors import DriverError
from worker import fork_server
from worker.app import create_app, serve
from worker.fork_server import ForkServerError
from worker.machine import device_again, find_device
from worker.supervisor import Supervisor

REPORTED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
log = structlog.get_logger()


def run(runtime: Runtime, device_name: str) -> None:
    """Serve the queue of this device's class until told to stop. Raises SystemExit where there is no such device."""
    device = find_device(device_name)
    if device.kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        # By uuid: CUDA would count by speed where NVML counts by PCI bus, and knows a MIG slice by nothing else.
        os.environ["CUDA_VISIBLE_DEVICES"] = device.uuid
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a library that asks for GPUs does not initialise CUDA
    # Threads that spin at OpenMP's barriers for long take the cores from those that still work, as soon as anything
    # else wants a core (6x slower steps by default); threads that never spin cost 15-20% of an idle machine's speed.
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = "100000"  # about a millisecond
    fork_server.start_fork_server()
    worker = TrainingWorker(runtime, device)
    end_when_silent("heartbeat", worker.pulse, runtime.settings.hang_seconds)

    app = create_app(runtime.settings)

    @app.task(name=RUN_JOB)
    def run_job(_nudged_for: str) -> None:
        worker.work()

    worker_ready.connect(lambda **_: worker.start(), weak=False)
    worker_shutdown.connect(lambda **_: worker.stop(), weak=False)
    queue = training_queue(device.device_class)
    log_level = runtime.settings.log_level
    serve(app, name=worker.id, queue=queue, concurrency=1, log_level=log_level, end_work=worker.leave)
    if worker.is_drained:
        sys.exit(DRAINED_EXIT_CODE)


class TrainingWorker:
    """What a training worker remembers between jobs."""

    def __init__(self, runtime: Runtime, device: Device) -> None:
        self.id = new_id("worker-")
        self.pulse = Pulse()  # of its heartbeat
        self.is_drained = False  # by request, rather than by a signal
        self._runtime = runtime
        self._device = device  # its free memory is the one seen last while no job of ours ran
        self._supervisor: Supervisor | None = None
        self._draining = threading.Event()
        self._warm = threading.Event()
        self._busy = threading.Lock()
        self._reports = OutageLog("heartbeat_failed", "heartbeat_works_again")
        self._versions = {package: version(package) for package in REPORTED_PACKAGES}
        self._heartbeat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """When the fork server has imported the training libraries, report for duty and look for waiting jobs."""
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def work(self) -> None:
        """Run queued jobs of this device's class, one after another, until there is none."""
        self._warm.wait()
        settings = self._runtime.settings
        with self._busy:
            while not self._draining.is_set() and self._is_sound() and self._is_of_this_release():
                claimed = self._runtime.database.run(
                    lambda session: leases.claim_next(session, settings, self.id, self._device.device_class)
                )
                if claimed is None:
                    return
                lease, job = claimed
                structlog.contextvars.bind_contextvars(job_id=job.id, organization=job.organization_id, worker=self.id)
                self._supervisor = Supervisor(self._runtime, lease, job, self._device)
                if self._draining.is_set():
                    self._supervisor.drain()
                try:
                    self._beat_once()
                    self._supervisor.supervise()
                except ForkServerError as error:
                    self._end_as_unfit(error)
                    return
                finally:
                    self._supervisor = None
                    structlog.contextvars.unbind_contextvars("job_id", "organization", "worker")
                    self._beat_once()

    def _is_sound(self) -> bool:
        """Whether the device can train, as it is read now."""
        self._notice(device_again(self._device))
        return self._device.problem is None

    def _is_of_this_release(self) -> bool:
        """Whether the database still is; where it was migrated under us, this worker leaves its jobs to newer ones."""
        problem = schema_problem(self._runtime.database)
        if problem is not None:
            log.error("schema_of_another_release", problem=problem)
            os.kill(os.getpid(), signal.SIGTERM)
        return problem is None

    def _notice(self, device: Device) -> None:
        if device.problem != self._device.problem:
            log.warning(
                "device_changed", device=device.name, uuid=device.uuid, problem=device.problem or "none any more"
            )
        self._device = device

    def drain(self) -> None:
        """Claim no more; stop the running job after a checkpoint so that another worker can go on with it."""
        self._draining.set()
        if self._supervisor is not None:
            self._supervisor.drain()

    def leave(self) -> int:
        """Drain, wait until the running job has been put back, and sign off; returns the exit code."""
        self.drain()
        with self._busy:
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
        log.info("worker_ready", worker=self.id, device=self._device.name, device_class=self._device.device_class)
        self._heartbeat.start()
        self.work()

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
            self._report()
        except SQLAlchemyError as error:
            self._reports.away(getattr(error, "orig", None) or error)
        except (DriverError, OSError, psutil.Error) as error:
            self._reports.away(error)
        else:
            self._reports.back()

    def _report(self) -> None:
        supervisor = self._supervisor
        now, disk = device_again(self._device), disk_space(self._runtime.settings.runs_dir)
        self._notice(now if supervisor is None else replace(self._device, problem=now.problem))
        said = WorkerReport(
            worker_id=self.id,
            hostname=os.uname().nodename,
            process_id=os.getpid(),
            device=self._device,
            used_bytes=now.total_bytes - now.free_bytes,
            tokens_per_second=supervisor.tokens_per_second if supervisor else None,
            versions=self._versions,
            job_id=supervisor.job_id if supervisor else None,
            disk_free_bytes=disk.free_bytes,
            disk_total_bytes=disk.total_bytes,
        )
        if self._runtime.database.run(lambda session: fleet.report(session, said)) and not self.is_drained:
            self.is_drained = True
            os.kill(os.getpid(), signal.SIGTERM)  # drains as any other shutdown does
