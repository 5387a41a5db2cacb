"""A plan as it is looked at before anything is kept: with every method beside it, also where nothing fits."""

from dataclasses import dataclass

from core.accounts.service import Actor
from core.datasets.inspection import TokenInspection
from core.errors import PlanDoesNotFitError
from core.planning.service import gather
from core.plans.service import PlanRequest, draft_from
from core.runtime import Runtime
from planner.memory.dry_run import DryRunMemory
from planner.plans import TrainingPlan
from planner.policy.comparison import MethodOutlook, compare_methods


@dataclass(frozen=True)
class PlanPreview:
    """`plan` is None where nothing that was asked for fits; `refusal` then says what would."""

    plan: TrainingPlan | None
    refusal: str
    methods: tuple[MethodOutlook, ...]
    tokens: TokenInspection
    is_dry_run: bool  # the model has no formula: a change of the setup may need another dry run


def preview_plan(runtime: Runtime, actor: Actor, request: PlanRequest) -> PlanPreview:
    """Plan without keeping anything. Raises what `draft_plan` raises, but not PlanDoesNotFitError."""
    inputs = gather(runtime, actor, request)
    plan, refusal, tokens = None, "", inputs.tokens
    try:
        draft = draft_from(runtime, inputs)
        plan, tokens = draft.plan, draft.tokens
    except PlanDoesNotFitError as error:
        refusal = error.message
    methods = compare_methods(inputs.question(runtime.settings.prices))
    return PlanPreview(plan, refusal, methods, tokens, isinstance(inputs.source, DryRunMemory))
