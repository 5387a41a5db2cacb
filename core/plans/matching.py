"""Whether a plan is the one that a request describes."""

from core.db.serialization import deserialize, serialize
from core.errors import InvalidRequestError
from core.plans.models import Plan
from core.plans.service import PlanRequest, training_plan
from planner.options import RequestedConfig, path_of
from planner.plans import planned_options
from planner.policy.recipe import choose_held_out
from planner.statistics import DatasetStatistics


def check_same_run(row: Plan, request: PlanRequest) -> None:
    """Refuse a plan that was made for another run than `request` describes; what it leaves open agrees with anything.

    Raises InvalidRequestError (`plan_mismatch`) that names the first difference.
    """
    compared: list[tuple[str, object, object]] = [
        ("model", row.model, request.model),
        ("training_file", row.training_file_id, request.training_file_id),
        ("validation_file", row.validation_file_id, request.validation_file_id),
        ("chat_template", row.chat_template, request.chat_template),
        ("exact_match", row.exact_match, serialize(request.exact_match) if request.exact_match else None),
    ]
    if (
        row.requested is None or deserialize(RequestedConfig, row.requested) != request.requested
    ):  # else it was asked for in the same words
        compared += _compared(row, request.requested)
    for param, planned, asked in compared:
        if asked is not None and planned != asked:
            raise InvalidRequestError(
                f"The plan {row.id} has {param} {planned}, this request {asked}. A plan is run exactly as it was "
                "quoted: send the planned value or leave it out, or ask for a new plan.",
                code="plan_mismatch",
                param=param,
            )


def _compared(row: Plan, requested: RequestedConfig) -> list[tuple[str, object, object]]:
    """What a plan has of everything that can be asked for, and what is asked: parameter, planned, asked."""
    planned = planned_options(training_plan(row))
    asked = {name: getattr(requested, name) for name in planned}
    if requested.validation_split is not None:
        asked["validation_split"] = choose_held_out(deserialize(DatasetStatistics, row.statistics), requested)
    return [(path_of(name), planned[name], asked[name]) for name in planned]
