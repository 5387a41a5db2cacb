"""The devices of one machine, and what each is reserved for."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import structlog

from planner.devices import Device
from worker.machine import device_again

log = structlog.get_logger()


@dataclass(frozen=True)
class Reading:
    """A device, its free memory as it is without what holds it, and the memory that is in use on it now."""

    device: Device
    used_bytes: int


class DevicePool:
    """Devices that work is placed on, each on its own. Safe to use from many threads.

    A device that nothing holds is read again whenever it is asked for; of one that is held, the free memory that it
    had before is remembered, as a plan for what comes after it would find it.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = {device.address: device for device in devices}
        self._held: set[str] = set()
        self._lock = threading.Lock()

    @property
    def device_classes(self) -> tuple[str, ...]:
        """The classes of the devices, each once."""
        return tuple(dict.fromkeys(device.device_class for device in self._devices.values()))

    @property
    def size(self) -> int:
        """How many devices there are."""
        return len(self._devices)

    def free(self, device_class: str) -> list[Device]:
        """The sound devices of a class that nothing holds, as they are now."""
        return [
            device
            for device in (reading.device for reading in self.read())
            if device.device_class == device_class and device.problem is None and device.address not in self._held
        ]

    def read(self) -> list[Reading]:
        """All devices in their order, read again now."""
        found = {address: device_again(device) for address, device in self._devices.items()}
        with self._lock:
            for address, now in found.items():
                known = self._devices[address]
                if now.problem != known.problem:
                    log.warning(
                        "device_changed", device=now.name, uuid=now.uuid, problem=now.problem or "none any more"
                    )
                self._devices[address] = replace(known, problem=now.problem) if address in self._held else now
            return [Reading(self._devices[address], now.total_bytes - now.free_bytes) for address, now in found.items()]

    @contextmanager
    def held(self, addresses: Sequence[str]) -> Iterator[tuple[Device, ...]]:
        """These devices, for nobody else meanwhile."""
        with self._lock:
            taken = self._held.intersection(addresses)
            assert not taken, f"{', '.join(sorted(taken))} are held already"
            self._held.update(addresses)
            devices = tuple(self._devices[address] for address in addresses)
        try:
            yield devices
        finally:
            with self._lock:
                self._held.difference_update(addresses)
