"""Memory of a model that the planner has no family of: read off dry-run steps instead of derived.

A dry run (worker/training/dry_run/step.py) runs the trainer's own step on fake tensors. One with a single row and one
with two give, phase by phase, a line for any micro-batch, since every tensor is either per row or per weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from planner import constants as c
from planner.devices import Device
from planner.errors import InvalidSetupError
from planner.memory.adapters import kept_bytes, trained_parameters, trained_width
from planner.memory.estimate import (
    MemoryEstimate,
    bound_of,
    library_workspaces,
    load_transient,
    overheads,
    proof_bytes,
)
from planner.memory.optimizers import optimizer_named
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.setup import Method, TrainingSetup
from planner.statistics import DatasetStatistics

ROWS = (1, 2)
EVALUATION, EVALUATION_LOSS = "evaluation", "evaluation loss"  # apart: each is a line in rows, and their maximum is not
_ACCUMULATED = 2  # micro-batches of a dry-run step: the second finds gradients, as all later ones do


@dataclass(frozen=True)
class DryRunQuestion:
    """What decides the steps that a model without a family must be dry-run with before it can be planned."""

    config: Mapping[str, Any]  # its config.json
    kinds: tuple[str, ...]  # of the devices to plan for: "cpu", "cuda"
    statistics: DatasetStatistics
    requested: RequestedConfig


@dataclass(frozen=True)
class DryRunStep:
    """One dry-run step: its setup, what stays between steps and the highest use of each phase, in bytes."""

    setup: TrainingSetup
    kind: str  # of the device whose kernels it ran
    base_bytes: int
    static_bytes: int
    phases: dict[str, int]
    operator: str  # at the peak
    layers: tuple[int, ...]  # numbers of decoder layers that ran

    @property
    def peak_bytes(self) -> int:
        """The highest use of all phases."""
        return max(self.phases.values())


@dataclass(frozen=True)
class DryRunMemory:
    """Estimates for one model from steps that were dry-run of it. Implements `candidates.MemorySource`."""

    spec: ModelSpec
    steps: tuple[DryRunStep, ...]

    def estimate(self, setup: TrainingSetup, device: Device | None) -> MemoryEstimate:
        """Memory of a run. A lower rank counts the activations of the dry-run one.

        Raises InvalidSetupError where no dry-run step is like it.
        """
        on_cpu = device is not None and device.kind == "cpu"
        one, two = self._pair(setup, "cpu" if on_cpu else "cuda")
        rows = setup.per_device_train_batch_size
        scale = -(-setup.max_length // one.setup.max_length) if setup.max_length > one.setup.max_length else 1
        above = {
            name: (peak - one.static_bytes) + (rows * scale - 1) * max(0, two.phases.get(name, peak) - peak)
            for name, peak in one.phases.items()
        }
        trained, width = trained_parameters(self.spec, setup), trained_width(setup)
        optimizer = optimizer_named(setup.optimizer)
        state = optimizer.state_bytes(trained, width)
        adapters = 0 if setup.method is Method.FULL else trained * width + kept_bytes(self.spec, setup)
        inputs = rows * setup.max_length * c.INPUT_BYTES_PER_TOKEN
        workspaces = 0 if on_cpu else library_workspaces(device)
        static = one.base_bytes + adapters + state + inputs + workspaces
        step = trained * width + optimizer.step_bytes(trained, width, self.spec.embedding_parameters)
        activations = max(*above.values(), step)
        context, slack = overheads(device, activations)
        load = load_transient(self.spec, setup, on_cpu=on_cpu)
        saving = proof_bytes(self.spec, setup, adapters, load, 0 if on_cpu else context)
        device_bytes = context + max(
            static + activations + slack, one.base_bytes + load + workspaces, one.base_bytes + saving
        )
        return MemoryEstimate(
            base_weights_bytes=one.base_bytes,
            adapters_bytes=adapters,
            gradients_bytes=trained * width,
            optimizer_state_bytes=state,
            inputs_bytes=inputs,
            library_workspaces_bytes=workspaces,
            saved_activations_bytes=activations,
            loss_phase_bytes=0,
            recompute_phase_bytes=0,
            optimizer_step_bytes=step - trained * width,
            dequantization_workspace_bytes=0,
            context_bytes=context,
            load_transient_bytes=load,
            allocator_slack_bytes=slack,
            static_allocated_bytes=static,
            peak_allocated_bytes=static + activations,
            device_bytes=device_bytes,
            bound_bytes=bound_of(device_bytes, on_cpu=on_cpu),
            evaluation_phase_bytes=max(above[EVALUATION], above[EVALUATION_LOSS]),
            saving_phase_bytes=saving,
        )

    def _pair(self, setup: TrainingSetup, kind: str) -> tuple[DryRunStep, DryRunStep]:
        alike = {
            step.setup.per_device_train_batch_size: step
            for step in self.steps
            if step.kind == kind
            and step.setup.method is setup.method
            and step.setup.gradient_checkpointing == setup.gradient_checkpointing
            and step.setup.packing == setup.packing
        }
        if set(alike) < set(ROWS):
            raise InvalidSetupError(
                f"{setup.method} of {self.spec.model_type} was not dry-run for {kind}: plan it anew."
            )
        return alike[1], alike[2]


def setups_to_dry_run(setups: Sequence[TrainingSetup]) -> list[TrainingSetup]:
    """What must be dry-run so that any micro-batch of these setups can be estimated: the highest rank of each method
    with and without checkpointing, at one row and at two, accumulated."""
    highest: dict[tuple[Method, bool], TrainingSetup] = {}
    for setup in setups:
        key = setup.method, setup.gradient_checkpointing
        if key not in highest or (setup.lora_rank or 0) > (highest[key].lora_rank or 0):
            highest[key] = setup
    return [
        replace(setup, per_device_train_batch_size=rows, gradient_accumulation_steps=_ACCUMULATED)
        for setup in highest.values()
        for rows in ROWS
    ]
