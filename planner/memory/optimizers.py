"""Optimizers by the names that transformers, torch and bitsandbytes give them: their state and their step."""

from dataclasses import dataclass

from planner.constants import EIGHT_BIT_STATE_BLOCK_SIZE
from planner.errors import InvalidSetupError

FLOAT32_BYTES = 4
# What our own trainer runs, by transformers' names (`TrainingArguments.optim`).
OPTIMIZERS = (
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
)


@dataclass(frozen=True)
class Optimizer:
    """What an optimizer keeps and needs, apart from the parameters and their gradients."""

    states: int  # tensors of the parameter's shape
    eight_bit: bool = False  # states of one byte with a float32 scale per block
    float32: bool = False  # states in float32, whatever the parameters are in; else in their dtype
    paged: bool = False  # states live in unified memory, which the device's allocator does not count
    foreach: bool = False  # the step allocates one temporary of the size of all parameters
    in_backward: bool = False  # each parameter is stepped, and its gradient freed, as soon as it is there

    def state_bytes(self, parameters: int, parameter_bytes: int) -> int:
        """Device bytes of the state of `parameters` stored in `parameter_bytes` each."""
        if self.paged:
            return 0
        if self.eight_bit:
            return self.states * (parameters + parameters * FLOAT32_BYTES // EIGHT_BIT_STATE_BLOCK_SIZE)
        return self.states * parameters * (FLOAT32_BYTES if self.float32 else parameter_bytes)

    def step_bytes(self, parameters: int, parameter_bytes: int, largest_parameter: int) -> int:
        """Temporaries of the step: foreach AdamW takes the square root of every second moment at once
        (torch/optim/adamw.py, `_multi_tensor_adamw`: exp_avg_sq_sqrt)."""
        if not self.foreach:
            return 0
        return (largest_parameter if self.in_backward else parameters) * parameter_bytes


def optimizer_named(name: str) -> Optimizer:
    """The optimizer behind a name such as `adamw_torch_fused`, `paged_adamw_8bit` or `sgd`.

    Published runs describe theirs in words ("AdamW fused into backward"), which are understood too.
    Raises InvalidSetupError for anything that is neither AdamW nor SGD.
    """
    words = name.lower().replace("-", "_").replace(" ", "_")
    in_backward = "in_backward" in words or "into_backward" in words
    if "adam" in words:
        eight_bit = "8bit" in words
        fused = "fused" in words and "fused_into_backward" not in words
        return Optimizer(
            states=2,
            eight_bit=eight_bit,
            float32="32bit" in words or words == "paged_adamw",  # bitsandbytes' optim_bits=32
            paged="paged" in words,
            foreach=not (fused or eight_bit or "paged" in words or "bnb" in words),
            in_backward=in_backward,
        )
    if "sgd" in words:
        return Optimizer(states=0, in_backward=in_backward)
    raise InvalidSetupError(f"The optimizer {name!r} is not modelled; AdamW in all its forms and SGD are.")
