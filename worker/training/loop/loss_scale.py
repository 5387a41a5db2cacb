"""The scale of a float16 run's loss: gradients too small for float16 are kept by making all of them larger.

The rule is that of torch.amp.GradScaler, with one difference: a step whose gradient overflows is not skipped but taken
again at half the scale, so that every step that is counted has been taken, on its own rows.
"""

from dataclasses import dataclass

import torch

from worker.training.model.gradients import NamedParameters, gradient_norm

INITIAL = 2.0**16
LARGEST = 2.0**24
GROWTH_INTERVAL = 2000  # steps without an overflow, after which the scale is doubled


@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied by before its gradient is taken. 1 for all but float16."""

    value: float = 1.0
    clean_steps: int = 0  # taken since it last changed

    @classmethod
    def of(cls, dtype: str) -> "LossScale":
        """The scale that a run in `dtype` starts with."""
        return cls(INITIAL) if dtype == "float16" else cls()

    @property
    def can_shrink(self) -> bool:
        """Whether an overflow may be the scale's doing."""
        return self.value > 1.0

    def halved(self) -> "LossScale":
        """After an overflow."""
        return LossScale(self.value / 2)

    def after_step(self) -> "LossScale":
        """After a step that was taken."""
        if self.value == 1.0 and not self.clean_steps:
            return self
        if self.clean_steps + 1 >= GROWTH_INTERVAL:
            return LossScale(min(LARGEST, self.value * 2))
        return LossScale(self.value, self.clean_steps + 1)


def unscaled_norm(parameters: NamedParameters, scale: LossScale) -> torch.Tensor:
    """The norm of all gradients together, which are divided by the scale in place; a scalar on the device."""
    if scale.value != 1.0:
        gradients = [parameter.grad for _, parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1 / scale.value)
    return gradient_norm(parameters)
