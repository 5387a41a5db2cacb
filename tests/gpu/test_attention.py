"""Flash attention over examples end to end, on a real GPU. Skipped where there is none."""

import pytest
import torch

from planner.devices import read_devices
from planner.kernels import FLASH_CAPABILITY
from worker.training.model.flash import flash_problem

HAS_GPU = any(
    device.compute_capability is not None and device.compute_capability >= FLASH_CAPABILITY for device in read_devices()
)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no CUDA device here runs flash attention")]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(9, 3, 64), (32, 8, 128), (8, 1, 256), (32, 32, 96), (40, 10, 128), (16, 16, 80)],
)
def test_it_agrees_with_plain_attention_on_this_device(heads: int, kv_heads: int, head_dim: int) -> None:
    assert flash_problem(heads, kv_heads, head_dim, torch.device("cuda")) is None
