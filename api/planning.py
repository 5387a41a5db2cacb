"""From a body to what `core` is asked: OpenAI's names and PEFT's on one side, the planner's options on the other."""

from api.schemas.hyperparameters import ExactMatchInput, FormatInput, HyperparametersInput
from api.schemas.jobs import PlanCreate
from api.schemas.options import read_requested
from core.datasets.examples import DataFormat, DataKind
from core.datasets.final_answers import ExactMatch, Extract
from core.errors import InvalidRequestError
from core.jobs.service import JobRequest
from core.plans.service import PlanRequest

_KINDS = {
    "messages": DataKind.CHAT,
    "sharegpt": DataKind.CHAT,
    "prompt_completion": DataKind.COMPLETION,
    "question_answer": DataKind.COMPLETION,
    "alpaca": DataKind.COMPLETION,
    "preference": DataKind.CHAT,
    "text": DataKind.TEXT,
}


def plan_request(body: PlanCreate) -> PlanRequest:
    """What is to be planned. Raises InvalidRequestError for what this service does not do."""
    if body.integrations:
        raise InvalidRequestError(
            "Integrations are not supported: metrics are in the job's events and its result file. Leave them out.",
            code="unsupported_integration",
            param="integrations",
        )
    return PlanRequest(
        model=body.model,
        training_file_id=body.training_file,
        validation_file_id=body.validation_file,
        data_format=_data_format(body.format) if body.format else None,
        skip_broken_rows=body.format is not None and body.format.skip_broken_rows,
        requested=read_requested({"": body, "adapter": body.adapter, "hyperparameters": _hyperparameters(body)}),
        chat_template=body.chat_template,
        exact_match=_exact_match(body.exact_match) if body.exact_match else None,
    )


def job_request(body: PlanCreate) -> JobRequest:
    """What is to be run, apart from its plan."""
    return JobRequest(
        plan_id=body.plan,
        suffix=body.suffix,
        seed=body.seed,
        metadata=body.metadata,
        integrations=body.integrations,
        credit_code=body.credit_code,
        max_credits=body.max_credits,
    )


def _data_format(wanted: FormatInput) -> DataFormat | None:
    if wanted.shape is None:
        if wanted.columns:
            raise InvalidRequestError(
                "format.columns mean something only with a format.shape. Send both, or neither.", param="format.shape"
            )
        return None
    return DataFormat(wanted.shape, _KINDS[wanted.shape], dict(wanted.columns))


def _exact_match(wanted: ExactMatchInput) -> ExactMatch:
    return ExactMatch(Extract(wanted.extract), wanted.column, wanted.rows, wanted.max_new_tokens)


def _hyperparameters(body: PlanCreate) -> HyperparametersInput | None:
    method = body.method
    if method is not None and (method.type != "supervised" or method.dpo or method.reinforcement):
        asked = method.type if method.type != "supervised" else "dpo" if method.dpo else "reinforcement"
        raise InvalidRequestError(
            f"method.type {asked!r} is not supported. Use 'supervised': of preference pairs it trains the "
            "chosen answers.",
            code="unsupported_method",
            param="method.type",
        )
    newer: HyperparametersInput | None = method.supervised.hyperparameters if method and method.supervised else None
    older: HyperparametersInput | None = body.hyperparameters
    if newer and older and newer != older:
        raise InvalidRequestError(
            "hyperparameters and method.supervised.hyperparameters differ. Send one of them.", param="hyperparameters"
        )
    return newer or older
