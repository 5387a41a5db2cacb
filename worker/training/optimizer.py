"""AdamW in the variants that a plan can choose, and clipping."""

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW, PagedAdamW8bit, PagedAdamW32bit

from core.errors import TrainingError
from planner.setup import Hyperparameters, TrainingSetup

NamedParameters = Sequence[tuple[str, torch.nn.Parameter]]

# transformers' names (`TrainingArguments.optim`), as plans use them.
_TORCH: dict[str, dict[str, Any]] = {"adamw_torch": {"foreach": True}, "adamw_torch_fused": {"fused": True}}
_BITSANDBYTES = {
    "adamw_8bit": AdamW8bit,
    "adamw_bnb_8bit": AdamW8bit,
    "paged_adamw": PagedAdamW,
    "paged_adamw_32bit": PagedAdamW32bit,
    "paged_adamw_8bit": PagedAdamW8bit,
}


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


def gradient_norm(parameters: NamedParameters) -> torch.Tensor:
    """Norm of all gradients together, a scalar on the device."""
    gradients = [parameter.grad for _, parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def clip_gradients(parameters: NamedParameters, max_norm: float, norm: torch.Tensor) -> None:
    """Scale all gradients so that their norm is at most `max_norm`; 0 means no clipping."""
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_([parameter for _, parameter in parameters], max_norm, norm)
