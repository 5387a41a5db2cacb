"""The training worker of this machine: one process for all of its devices."""

import sys
from collections.abc import Sequence

from cli.supervision import Liveness, Program
from cli.terminal import err
from core.errors import ServiceUnavailableError
from core.fleet.service import DRAINED_EXIT_CODE
from core.settings import Settings
from planner.devices import Device, read_all_devices, read_devices
from planner.errors import DriverError

EXTRA_GRACE_SECONDS = 10.0  # beyond what a worker grants its training child: to write down how the job was left


def training_devices() -> list[str]:
    """The address of each sound GPU, else `cpu`. Raises ServiceUnavailableError where no driver or no GPU is sound."""
    gpus = [device.address for device in sound_devices() if device.kind == "cuda"]
    return gpus or ["cpu"]


def sound_devices() -> list[Device]:
    """The devices of this machine that can train; of those that cannot, it is said why.

    Raises ServiceUnavailableError where the driver does not answer, or no GPU is sound.
    """
    try:
        for device in read_all_devices():
            if device.problem is not None:
                err.print(f"{device.name} ({device.address}) is left out: {device.problem}.", style="yellow")
        return read_devices()
    except DriverError as error:
        raise ServiceUnavailableError(str(error)) from None


def training_program(devices: Sequence[str], settings: Settings) -> Program:
    """The worker that trains on these devices."""
    return Program(
        "worker",
        training_command(devices),
        settings.stop_grace_seconds + EXTRA_GRACE_SECONDS,
        final_code=DRAINED_EXIT_CODE,
        liveness=Liveness(),
    )


def training_command(devices: Sequence[str]) -> tuple[str, ...]:
    """The command of the worker that trains on these devices."""
    return worker_command(*(part for device in devices for part in ("--device", device)))


def worker_command(*arguments: str) -> tuple[str, ...]:
    """The command of one worker process."""
    return sys.executable, "-m", "worker", *arguments
