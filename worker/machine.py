"""The device that a worker drives: found by its name, and read again as it is now."""

from dataclasses import replace

import psutil
import structlog

from planner.devices import Device, order_note, read_all_devices, read_cpu
from planner.errors import DriverError

log = structlog.get_logger()


def find_device(name: str) -> Device:
    """The device of this address ("cpu", "cuda:1", "cuda:1:0") or uuid. Raises SystemExit where none can train."""
    if name == "cpu":
        return read_cpu()
    try:
        found, note = read_all_devices(), order_note()
    except DriverError as error:
        raise SystemExit(str(error)) from None
    if note is not None:
        log.warning("device_order", note=note)
    address = "cuda:0" if name == "cuda" else name
    device = next((device for device in found if address in (device.address, device.uuid)), None)
    if device is None:
        there = ", ".join(f"{device.address} ({device.name})" for device in found)
        raise SystemExit(f"There is no device {name!r} on this machine. There is: {there}.")
    if device.problem is not None:
        raise SystemExit(f"Nothing can be trained on {device.name} ({device.address}): {device.problem}.")
    return device


def device_again(device: Device) -> Device:
    """The same device with the memory that is free now, or with what is wrong with it."""
    if device.kind == "cpu":
        return replace(device, free_bytes=min(device.total_bytes, psutil.virtual_memory().available))
    try:
        found = next((found for found in read_all_devices() if found.uuid == device.uuid), None)
    except DriverError as error:
        return replace(device, problem=str(error))
    if found is None:
        return replace(device, problem="the driver no longer lists it; `nvidia-smi` may say why")
    return replace(device, free_bytes=found.free_bytes, problem=found.problem)
