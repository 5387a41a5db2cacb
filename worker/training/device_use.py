"""What a run holds on its GPU, where the driver's word lets that be told apart from what others hold."""

import os

import torch

from planner.devices import read_all_devices
from planner.nvml import Usage, usage

# What an idle card has in use: the driver's own reserve, and at most another program's bare context.
IDLE_BYTES = 1 << 30


class DeviceUse:
    """One process on one GPU. To be made before the process uses CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = {gpu.uuid: gpu.total_bytes - gpu.free_bytes for gpu in read_all_devices()}

    def own_bytes(self) -> int | None:
        """Memory that this process holds on the GPU, its context included; None where that cannot be told."""
        uuid = self._uuid()
        found = usage(uuid)
        return None if found is None else attributed_bytes(found, os.getpid(), self._before[uuid])

    def _uuid(self) -> str:
        """The driver's name of the GPU that CUDA knows by a number, or by a uuid without the kind of device."""
        bare = str(torch.cuda.get_device_properties(self._device).uuid)
        named = [uuid for uuid in self._before if uuid.endswith(bare)]
        return named[0] if named else list(self._before)[self._device.index or 0]


def attributed_bytes(found: Usage, process_id: int, before_bytes: int) -> int | None:
    """What a process that has a context holds, of what is in use: its own line, or the only line (a container's
    process ids are not the host's), or where there is none all that came on top of an idle card's use."""
    own = found.processes.get(process_id)
    if own is None and len(found.processes) == 1:
        (own,) = found.processes.values()
    if own is None and len(found.processes) <= 1 and before_bytes <= IDLE_BYTES:
        own = found.used_bytes - before_bytes
    return own if own is not None and own > 0 else None
