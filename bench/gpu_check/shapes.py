"""The models and setups that are measured: catalogue shapes, plans as the policy makes them, and their variants."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from planner.catalogue import find_model
from planner.devices import Device
from planner.kernels import attention_on, with_kernels
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.policy.candidates import Question
from planner.policy.choice import plan
from planner.setup import VARLEN_FLASH, Method, Quantization, TrainingSetup
from planner.statistics import DatasetStatistics

RANK = 16
SHORTEST_EXAMPLE = 64  # tokens; the longest has the workload's length
EXAMPLES = 2_000
# What makes another run of a setup, rather than the same run by other code. Every other switch and choice is a variant.
_ANOTHER_RUN = {
    "method", "quantization", "packing", "use_rslora", "use_dora", "init_lora_weights", "optimizer",
}  # fmt: skip
_SMALL = {
    "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 4096,
}  # fmt: skip
_SMALL_LENGTH, _SMALL_ROWS = 64, 2


@dataclass(frozen=True)
class Workload:
    """A model and what is trained on it."""

    model: str  # an id of the catalogue
    method: Method
    length: int  # tokens of a row
    packing: bool = True

    @property
    def name(self) -> str:
        """As the tables show it."""
        return f"{self.model} {self.method} {self.length}{'' if self.packing else ' unpacked'}"


def config_of(model: str, *, small: bool = False) -> dict[str, Any]:
    """A catalogue model's `config.json`; small: cut to two narrow layers. Raises KeyError for a model it lacks."""
    entry = find_model(model)
    if entry is None:
        raise KeyError(f"{model} is not in the catalogue")
    config = dict(entry.config)
    if not small:
        return config
    kinds = config.get("layer_types")
    config |= _SMALL | ({"layer_types": list(kinds)[:2]} if isinstance(kinds, list | tuple) else {})
    return config | ({"moe_intermediate_size": 64} if "moe_intermediate_size" in config else {})


def setup_of(method: Method, rows: int, length: int, **changes: Any) -> TrainingSetup:
    """A setup of each method, adapters of rank 16 on every linear layer."""
    setup = TrainingSetup(method, per_device_train_batch_size=rows, max_length=length)
    if method is not Method.FULL:
        quantization = Quantization.NF4_DOUBLE_QUANT if method is Method.QLORA else None
        setup = replace(
            setup, quantization=quantization, lora_rank=RANK, lora_alpha=2 * RANK,
            lora_target_modules=("all-linear",), adapter_dtype="float32",
        )  # fmt: skip
    return replace(setup, **changes)


def fitted(setup: TrainingSetup, spec: ModelSpec, device: Device) -> TrainingSetup:
    """The setup with the number format and the kernels that the policy takes for this model on the device. Flash
    attention gives way where the policy does not take it; another attention that a case asks for stays."""
    setup = with_kernels(setup, spec, device)
    if setup.attn_implementation == VARLEN_FLASH:
        return replace(setup, attn_implementation=attention_on(spec, device))
    return setup


def planned_setup(workload: Workload, device: Device, *, small: bool = False) -> TrainingSetup:
    """What the policy plans for the workload on this device, micro-batch, checkpointing and attention its own choice;
    one micro-batch a step. Raises PlannerError where there is no such plan."""
    spec = ModelSpec.from_config(config_of(workload.model, small=small))
    lengths = tuple(sorted(example_lengths(EXAMPLES, workload.length)))
    tokens = sum(lengths)
    rank = None if workload.method is Method.FULL else RANK
    requested = RequestedConfig(
        method=workload.method, max_length=workload.length, packing=workload.packing, lora_rank=rank
    )
    statistics = DatasetStatistics(EXAMPLES, tokens, tokens, lengths)
    setup = replace(
        plan(Question(spec, statistics, [device], requested, {"default": 1})).setup, gradient_accumulation_steps=1
    )
    return replace(setup, per_device_train_batch_size=_SMALL_ROWS, max_length=_SMALL_LENGTH) if small else setup


def example_lengths(count: int, longest: int, seed: int = 0) -> list[int]:
    """Lengths of examples from short to a whole row, log-uniform."""
    random = np.random.default_rng(seed)
    shortest = min(SHORTEST_EXAMPLE, max(1, longest // 2))
    drawn = np.exp(random.uniform(np.log(shortest), np.log(longest), count)).astype(int).tolist()
    return [*drawn[:-1], longest]


def variants(setup: TrainingSetup) -> Iterator[tuple[str, TrainingSetup]]:
    """The same run by other code: every switch of the setup the other way, every choice taken differently.

    Switches and choices are read off the planner's own vocabulary, so that a new one is measured without a word here.
    """
    hints = get_type_hints(TrainingSetup)
    for field in fields(TrainingSetup):
        if field.name in _ANOTHER_RUN:
            continue
        current = getattr(setup, field.name)
        for value in _choices(hints[field.name]):
            if value != current:
                shown = value.value if isinstance(value, Enum) else value
                other = replace(setup, **{field.name: value})
                if other.torch_compile:  # fuses by itself what Liger's kernels do
                    other = replace(other, fused_rotary=False, fused_activation=False)
                yield f"{field.name}={shown}", other


def missing_library(setup: TrainingSetup, device: Device) -> str | None:
    """What the setup needs and is not installed; None where nothing is missing."""
    takes_liger = setup.fused_rotary or setup.fused_activation
    return "liger-kernel is not installed" if takes_liger and not device.has_liger else None


def _choices(kind: Any) -> tuple[Any, ...]:
    """All values of a type that has few; none of one that has many."""
    if get_origin(kind) in (Union, UnionType):
        return tuple(value for part in get_args(kind) if part is not NoneType for value in _choices(part))
    if kind is bool:
        return (False, True)
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(kind) if isinstance(kind, type) and issubclass(kind, Enum) else ()
