"""The training workers of this machine: one process per device."""

import sys

from cli.supervision import Liveness, Program
from core.errors import ServiceUnavailableError
from core.fleet.service import DRAINED_EXIT_CODE
from core.settings import Settings
from planner.devices import read_devices
from planner.errors import DriverError

EXTRA_GRACE_SECONDS = 10.0  # beyond what a worker grants its training child: to write down how the job was left


def training_devices() -> list[str]:
    """`cuda:N` for each GPU, else `cpu`. Raises ServiceUnavailableError where the driver does not answer."""
    try:
        devices = read_devices()
    except DriverError as error:
        raise ServiceUnavailableError(str(error)) from None
    gpus = [f"cuda:{device.index}" for device in devices if device.kind == "cuda"]
    return gpus or ["cpu"]


def training_program(device: str, settings: Settings) -> Program:
    """The worker that trains on `device`."""
    return Program(
        f"worker-{device.replace(':', '-')}",
        worker_command("--device", device),
        settings.stop_grace_seconds + EXTRA_GRACE_SECONDS,
        final_code=DRAINED_EXIT_CODE,
        liveness=Liveness(),
    )


def worker_command(*arguments: str) -> tuple[str, ...]:
    """The command of one worker process."""
    return sys.executable, "-m", "worker", *arguments
