"""Choose the run: the policy of `docs/planner.md`, in its order, each step leaving a sentence."""

from collections.abc import Sequence
from dataclasses import replace

from planner import constants as c
from planner.memory.dry_run import setups_to_dry_run as dry_run_of
from planner.options import Priority, RequestedConfig
from planner.plans import Alternative, Quote, TrainingPlan
from planner.policy.candidates import (
    LADDER,
    OPTIMIZER,
    Candidate,
    Question,
    allowed_methods,
    candidates_on,
    length_on,
    setups_on,
    usable_devices,
)
from planner.policy.explanations import describe_alternatives, explain
from planner.policy.infeasibility import refusal
from planner.policy.recipe import check_requested
from planner.setup import Method, TrainingSetup

__all__ = [
    "Alternative",
    "Priority",
    "Quote",
    "RequestedConfig",
    "TrainingPlan",
    "plan",
    "setups_to_dry_run",
    "step_down",
]


def plan(question: Question) -> TrainingPlan:
    """The run for this model and data set on one of these devices. A pure function of its argument.

    Raises InvalidSetupError for options that contradict each other, DoesNotFitError where nothing asked for fits.
    """
    check_requested(question.spec, question.requested)
    candidates = [each for device in usable_devices(question) for each in candidates_on(question, device)]
    chosen = choose_run(question, candidates)
    if chosen is None:
        raise refusal(question, candidates)
    length = length_on(question, chosen.device.kind)
    return TrainingPlan(
        setup=chosen.setup,
        hyperparameters=chosen.hyperparameters,
        device=chosen.device,
        memory=chosen.memory,
        speed=chosen.speed,
        total_steps=chosen.speed.total_steps,
        n_epochs=chosen.hyperparameters.n_epochs,
        quote=chosen.quote,
        credits=chosen.quote.credits,
        truncated_examples=length.truncated_examples,
        truncated_tokens=length.truncated_tokens,
        reasons=explain(question, candidates, chosen, length),
        alternatives=describe_alternatives(question, candidates, chosen),
    )


def setups_to_dry_run(question: Question, kind: str) -> list[TrainingSetup]:
    """The steps to dry-run before a model without a family can be planned on a kind of device, "cpu" or "cuda".

    Raises InvalidSetupError.
    """
    check_requested(question.spec, question.requested)
    return dry_run_of(setups_on(question, kind))


def step_down(setup: TrainingSetup) -> TrainingSetup | None:
    """The same run with half the micro-batch (its largest proper divisor) and the effective batch kept.

    None where the micro-batch is 1 already.
    """
    rows = setup.per_device_train_batch_size
    if rows == 1:
        return None
    factor = next(n for n in range(2, rows + 1) if rows % n == 0)
    return replace(
        setup,
        per_device_train_batch_size=rows // factor,
        gradient_accumulation_steps=setup.gradient_accumulation_steps * factor,
    )


def preferred_methods(question: Question) -> tuple[Method, ...]:
    """Methods in the order in which they are taken if they fit."""
    allowed = allowed_methods(question)
    small = question.statistics.trained_tokens < c.FULL_FROM_TRAINED_TOKENS
    if question.requested.method is None and question.requested.priority is Priority.AUTO and small:
        return tuple(method for method in allowed if method is not Method.FULL)
    return allowed


def choose_run(question: Question, candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate that the policy takes; None where none fits."""
    fitting = [candidate for candidate in candidates if candidate.fits]
    if question.requested.priority is Priority.ECONOMY:
        return _fastest(fitting, by_price=True)
    for method in preferred_methods(question):
        of_method = [candidate for candidate in fitting if candidate.setup.method is method]
        if of_method:
            rank = max(candidate.setup.lora_rank or 0 for candidate in of_method)
            usual = [x for x in of_method if (x.setup.lora_rank or 0) == rank and x.setup.optimizer == OPTIMIZER]
            return _fastest(usual or of_method, by_price=True)
    return None


def _fastest(candidates: Sequence[Candidate], *, by_price: bool) -> Candidate | None:
    """The cheapest, then the fastest; among equally fast ones the least compressed and best filled."""
    if not candidates:
        return None
    lowest = min(candidate.quote.credits for candidate in candidates) if by_price else 0
    cheapest = [x for x in candidates if not by_price or x.quote.credits == lowest]
    time = min(candidate.speed.seconds for candidate in cheapest)
    close = [x for x in cheapest if x.speed.seconds <= time * (1 + c.TIME_TOLERANCE)]
    return min(close, key=_preference)


def _preference(candidate: Candidate) -> tuple[int, int, bool, int, int]:
    setup = candidate.setup
    tokens = setup.micro_sequences * setup.max_length
    filled = tokens if tokens <= c.SATURATING_TOKENS else -tokens
    return (
        LADDER.index(setup.method),
        -(setup.lora_rank or 0),
        setup.gradient_checkpointing,
        -filled,
        candidate.device.index,
    )
