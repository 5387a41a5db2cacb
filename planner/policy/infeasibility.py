"""What to say when nothing fits: the smallest change or GPU that would."""

from collections.abc import Sequence
from dataclasses import replace

from planner import constants as c
from planner.catalogue import gpus
from planner.devices import Device, device_of
from planner.errors import DoesNotFitError
from planner.options import RequestedConfig
from planner.policy.candidates import Candidate, Question, allowed_methods, candidates_on
from planner.precision import device_problem
from planner.wording import METHODS, gib

SHORTEST_LENGTH = 128  # tokens; a suggestion below it would help nobody


def refusal(question: Question, candidates: Sequence[Candidate]) -> DoesNotFitError:
    """The error that says how much is missing and what would fit."""
    best = max(candidates, key=lambda candidate: candidate.headroom_bytes)
    setup, device = best.setup, best.device
    said = (
        f"Nothing fits. {METHODS[setup.method]} at {setup.max_length:,} tokens needs "
        f"{gib(best.memory.required_bytes)} with its bound; {device.name} has {gib(device.free_bytes)} free."
    )
    changes = [change for change in (_without_pins(question, device), _shorter(question, best)) if change]
    gpu = _smallest_gpu(question, best)
    if gpu:
        changes.append(f"use a GPU such as {gpu}")
    if not changes:
        return DoesNotFitError(f"{said} No known GPU can hold it: choose a smaller model.")
    return DoesNotFitError(f"{said} What would fit: {', or '.join(changes)}.")


def _without_pins(question: Question, device: Device) -> str | None:
    """The first pinned choice whose release alone makes the run fit."""
    requested = question.requested
    releases: list[tuple[str, RequestedConfig]] = []
    if requested.method is not None:
        free = replace(requested, method=None)
        others = [m for m in allowed_methods(replace(question, requested=free)) if m is not requested.method]
        releases += [(f"use {METHODS[method]}", replace(requested, method=method)) for method in others]
    if requested.per_device_train_batch_size is not None:
        releases.append(
            ("leave per_device_train_batch_size open", replace(requested, per_device_train_batch_size=None))
        )
    if requested.gradient_checkpointing is False:
        releases.append(("allow gradient checkpointing", replace(requested, gradient_checkpointing=None)))
    if requested.lora_rank is not None:
        releases.append(("leave lora_rank open", replace(requested, lora_rank=None)))
    if requested.modules_to_save is not None:
        releases.append(("leave modules_to_save out", replace(requested, modules_to_save=None)))
    if requested.optim is not None:
        releases.append(("leave optim open", replace(requested, optim=None)))
    for name, released in releases:
        if _fits(replace(question, requested=released), device):
            return name
    return None


def _fits(question: Question, device: Device) -> bool:
    return any(candidate.fits for candidate in candidates_on(question, device))


def _shorter(question: Question, best: Candidate) -> str | None:
    """The greatest length, to 64 tokens, at which the best run fits.

    Found by regula falsi in its Illinois variant (Dowell & Jarratt, BIT 11, 1971): memory grows almost on a line with
    the length, so the search looks first where that line meets the free memory. Where scores of attention bend it, the
    end that stays a second time counts half, else the other would creep.
    """

    def missing_bytes(steps: int) -> int:
        shorter = replace(best.setup, max_length=steps * c.LENGTH_STEP)
        estimate = question.memory_of(shorter, best.device).corrected(best.memory.correction)
        return estimate.required_bytes - best.device.free_bytes

    low, high = SHORTEST_LENGTH // c.LENGTH_STEP, -(-best.setup.max_length // c.LENGTH_STEP)
    if high <= low or (below := float(missing_bytes(low))) > 0:
        return None
    above = float(-best.headroom_bytes)
    fitted: bool | None = None
    while high - low > 1:
        crossing = low + int((high - low) * -below / (above - below))
        steps = min(max(crossing, low + 1), high - 1)
        missing = missing_bytes(steps)
        fits = missing <= 0
        if fits:
            low, below, above = steps, missing, above / 2 if fitted is True else above
        else:
            high, above, below = steps, missing, below / 2 if fitted is False else below
        fitted = fits
    return f"set max_length to {low * c.LENGTH_STEP:,} or less"


def _smallest_gpu(question: Question, best: Candidate) -> str | None:
    """The smallest known GPU that holds the run that needs least. No correction: it is of another device."""
    for gpu in sorted(gpus(), key=lambda gpu: (gpu.memory_gib, gpu.bf16_flops)):
        device = device_of(gpu)
        if device.free_bytes <= best.memory.base_weights_bytes:
            continue
        if device_problem(device, question.spec, (best.setup.method,)):
            continue
        if question.memory_of(best.setup, device).required_bytes <= device.free_bytes:
            return f"{gpu.title} ({gpu.memory_gib} GB)"
    return None
