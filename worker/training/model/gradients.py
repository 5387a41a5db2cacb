"""Gradients of the trained parameters: that they are there, their norm, and clipping."""

import re
from collections.abc import Sequence

import torch

from core.errors import TrainingError

NamedParameters = Sequence[tuple[str, torch.nn.Parameter]]

_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")  # kept apart from the others: no token need have been sent to it


class NoGradientError(TrainingError):
    """Raised when something that is to be trained gets no gradient."""

    code = "no_gradient"


def require_gradients(parameters: NamedParameters) -> None:
    """Raises NoGradientError where a trained tensor got none from a whole step."""
    lost = [name for name, parameter in parameters if parameter.grad is None and not _ONE_EXPERT.search(name)]
    if lost:
        raise NoGradientError(
            f"{len(lost)} of {len(parameters)} trained tensors got no gradient, {lost[0]} among them: the job would "
            "learn nothing there. Please report this with the model and the method; leaving them out of "
            "lora_target_modules trains the rest."
        )


def learning(parameters: NamedParameters) -> frozenset[str]:
    """The names of the trained tensors whose gradient is anything but zeros."""
    reached = [(name, parameter.grad) for name, parameter in parameters if parameter.grad is not None]
    if not reached:
        return frozenset()
    is_any = torch.stack([gradient.any() for _, gradient in reached]).tolist()
    return frozenset(name for (name, _), is_one in zip(reached, is_any, strict=True) if is_one)


def gradient_norm(parameters: NamedParameters) -> torch.Tensor:
    """Norm of all gradients together, a scalar on the device."""
    gradients = [parameter.grad for _, parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def clip_gradients(parameters: NamedParameters, max_norm: float, norm: torch.Tensor) -> None:
    """Scale all gradients so that their norm is at most `max_norm`; 0 means no clipping."""
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_([parameter for _, parameter in parameters], max_norm, norm)
