"""Proof that a training child has given everything back: its process group is gone, and its memory free again.

The kernel takes a dead process's memory back at once, but a GPU's driver takes its context down a little later, and
what is planned or started in between would find less memory than there is.
"""

import os
import time
from collections.abc import Iterator

import psutil
import structlog

from planner.devices import Device, read_all_devices
from planner.errors import DriverError
from worker.backoff import delays

FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.02, 0.5
SLACK_BYTES = 64 * 1024**2  # what the driver itself may keep, or another program take meanwhile

log = structlog.get_logger()


def wait_until_released(device: Device, group_id: int, seconds: float) -> bool:
    """Whether, within `seconds`, the group has no living process and a GPU as much free memory as `device` says.

    `device` is as it was read before the child started. What is not free then is logged with its figures: on a card
    that other programs use it may be theirs. A card that is sick or lost gives nothing back, and is not waited for.
    """
    deadline = time.monotonic() + seconds
    for delay in delays(FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS):
        living = list(members(group_id))
        missing_bytes = 0 if device.kind == "cpu" else _missing_bytes(device)
        if not living and missing_bytes <= SLACK_BYTES:
            return True
        if time.monotonic() + delay > deadline:
            log.error("device_not_released", device=device.name, processes=living, missing_bytes=missing_bytes)
            return False
        time.sleep(delay)  # neither the kernel nor NVML tells of it
    raise AssertionError("delays never end")


def members(group_id: int) -> Iterator[int]:
    """The ids of the living processes of a process group."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group_id and process.status() != psutil.STATUS_ZOMBIE:
                yield process.pid
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


def _missing_bytes(device: Device) -> int:
    """How much less memory of a GPU is free than was: all of it while the driver does not answer, none where the driver
    answers that the card is sick or does not know it any more."""
    try:
        now = next((found for found in read_all_devices() if found.uuid == device.uuid), None)
    except DriverError:
        return device.free_bytes
    if now is None or now.problem is not None:
        log.error("device_lost", device=device.name, problem=None if now is None else now.problem)
        return 0
    return device.free_bytes - now.free_bytes
