"""AdamW in the variants that a plan can choose."""

from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW, PagedAdamW8bit, PagedAdamW32bit
from bitsandbytes.optim.optimizer import Optimizer8bit

from core.errors import TrainingError
from planner.setup import Hyperparameters, TrainingSetup
from worker.training.model.gradients import NamedParameters

# transformers' names (`TrainingArguments.optim`), as plans use them.
_TORCH: dict[str, dict[str, Any]] = {"adamw_torch": {"foreach": True}, "adamw_torch_fused": {"fused": True}}
_BITSANDBYTES = {
    "adamw_8bit": AdamW8bit,
    "adamw_bnb_8bit": AdamW8bit,
    "paged_adamw": PagedAdamW,
    "paged_adamw_32bit": PagedAdamW32bit,
    "paged_adamw_8bit": PagedAdamW8bit,
}
_PAGED_STATES = ("state1", "state2")  # of bitsandbytes' optimizers; the small rest stays on the GPU


def build_optimizer(
    parameters: NamedParameters, setup: TrainingSetup, hyperparameters: Hyperparameters
) -> torch.optim.Optimizer:
    """AdamW over the trained parameters. Weight decay leaves out biases and norms, as is usual.

    Raises TrainingError for an optimizer that no plan offers.
    """
    decayed = [parameter for _, parameter in parameters if parameter.ndim > 1]
    plain = [parameter for _, parameter in parameters if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": hyperparameters.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if setup.optimizer in _TORCH:
        return torch.optim.AdamW(groups, lr=hyperparameters.learning_rate, **_TORCH[setup.optimizer])
    if setup.optimizer in _BITSANDBYTES:
        return _BITSANDBYTES[setup.optimizer](groups, lr=hyperparameters.learning_rate)
    known = ", ".join([*_TORCH, *_BITSANDBYTES])
    raise TrainingError(
        f"The optimizer {setup.optimizer!r} is not known. Choose one of: {known}.", code="unsupported_setup"
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put a saved state in place, on the parameters' device or, of a paged optimizer, in memory that the driver pages
    out when the GPU is full. bitsandbytes on its own would leave a loaded state on the GPU for good."""
    if not isinstance(optimizer, Optimizer8bit):
        optimizer.load_state_dict(state)
        return
    optimizer.load_state_dict(state, move_to_device=False)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and name in optimizer.non_castable_tensor_keys:
                values[name] = _placed(optimizer, parameter, name, value)


def _placed(optimizer: Optimizer8bit, parameter: torch.Tensor, name: str, value: torch.Tensor) -> torch.Tensor:
    if name in _PAGED_STATES and optimizer.is_paged:
        buffer: torch.Tensor = optimizer.get_state_buffer(parameter, dtype=value.dtype)
        return buffer.copy_(value)
    return value.to(parameter.device)
