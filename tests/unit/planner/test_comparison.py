"""Methods side by side agree with the policy, and reach grows with memory."""

from dataclasses import replace

import pytest

from core.settings import PRICES
from planner.catalogue import find_gpu, find_model
from planner.devices import Device, device_of
from planner.errors import DoesNotFitError
from planner.memory.estimate import MemoryEstimate, estimate_memory
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.policy import choice as policy
from planner.policy.candidates import Known, Question
from planner.policy.comparison import compare_methods
from planner.policy.longest_context import farthest, longest_context
from planner.setup import Method, TrainingSetup
from planner.statistics import DatasetStatistics

DATA = DatasetStatistics(examples=200, tokens=60_000, trained_tokens=30_000, token_lengths=tuple([300] * 200))


def spec_of(model: str) -> ModelSpec:
    entry = find_model(model)
    assert entry is not None
    return ModelSpec.from_config(entry.config)


def gpu(name: str) -> Device:
    found = find_gpu(name)
    assert found is not None
    return device_of(found)


@pytest.mark.parametrize("name", ["rtx-3060-12gb", "rtx-4090-24gb", "a100-80gb"])
@pytest.mark.parametrize(
    "requested", [RequestedConfig(), RequestedConfig(lora_rank=64), RequestedConfig(max_length=1024, n_epochs=1)]
)
def test_each_method_is_what_the_policy_takes_with_it_pinned(name: str, requested: RequestedConfig) -> None:
    spec, devices = spec_of("llama-3.1-8b"), [gpu(name)]
    for outlook in compare_methods(Question(spec, DATA, devices, requested, PRICES)):
        pinned = replace(requested, method=outlook.method)
        if outlook.method is Method.FULL:
            pinned = replace(pinned, lora_rank=None)
        try:
            plan = policy.plan(Question(spec, DATA, devices, pinned, PRICES))
        except DoesNotFitError:
            assert not outlook.fits
            assert outlook.memory.required_bytes > devices[0].free_bytes
        else:
            assert outlook.fits
            assert (outlook.setup, outlook.memory, outlook.credits) == (plan.setup, plan.memory, plan.credits)


def test_devices_of_one_sort_are_estimated_once() -> None:
    """A plan follows what one types, also on a large fleet."""
    spec, device = spec_of("llama-3.1-8b"), gpu("rtx-4090-24gb")
    fleet = [replace(device, index=index, uuid=str(index), free_bytes=device.free_bytes - index) for index in range(8)]
    asked: list[TrainingSetup] = []

    class Counted:
        def estimate(self, setup: TrainingSetup, device: Device | None) -> MemoryEstimate:
            asked.append(setup)
            return estimate_memory(spec, setup, device)

    alone = policy.plan(Question(spec, DATA, [device], RequestedConfig(), PRICES, memory=Counted()))
    for_one = len(asked)
    known: Known = {}
    among = policy.plan(Question(spec, DATA, fleet, RequestedConfig(), PRICES, memory=Counted(), known=known))
    assert len(asked) == 2 * for_one
    same = {"device": alone.device, "reasons": alone.reasons, "alternatives": alone.alternatives}
    assert replace(among, **same) == alone
    outlooks = compare_methods(Question(spec, DATA, fleet, RequestedConfig(), PRICES, memory=Counted(), known=known))
    assert len(asked) == 2 * for_one
    assert outlooks == compare_methods(Question(spec, DATA, fleet, RequestedConfig(), PRICES))


def test_more_memory_never_reaches_less_far() -> None:
    spec = spec_of("qwen2.5-7b-instruct")
    ladder = [Method.QLORA, Method.LORA, Method.FULL]
    found = [longest_context(spec, gpu(name)) for name in ("rtx-3060-12gb", "rtx-4090-24gb", "a100-40gb", "a100-80gb")]
    known = [(ladder.index(one.method), one.max_length) for one in found if one is not None]
    assert known == sorted(known)
    assert longest_context(spec_of("llama-3.3-70b-instruct"), gpu("rtx-3060-12gb")) is None


def test_what_fits_the_memory_and_takes_weeks_does_not_fit() -> None:
    """A machine with much memory and few cores holds models that it cannot train in any useful time."""
    cpu = Device(0, "cpu", "CPU, 2 cores", "cpu", 256 << 30, 250 << 30, None, "cpu", 2)
    small, large = (
        longest_context(spec_of("smollm2-135m-instruct"), cpu),
        longest_context(spec_of("llama-3.3-70b-instruct"), cpu),
    )
    assert small is not None
    assert small.is_useful
    assert large is not None
    assert not large.is_useful
    assert large.seconds > 5 * 86_400


def test_the_device_that_is_quick_enough_goes_before_the_one_that_only_has_the_memory() -> None:
    spec = spec_of("qwen2.5-14b-instruct")
    cpu = Device(0, "cpu", "CPU, 2 cores", "cpu", 256 << 30, 250 << 30, None, "cpu", 2)
    card = longest_context(spec, gpu("rtx-4090-24gb"))
    assert farthest([longest_context(spec, cpu), card, None]) == card
    assert farthest([None]) is None
