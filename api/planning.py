"""From a body to what `core` is asked: OpenAI's names and PEFT's on one side, the planner's wishes on the other."""

from api.schemas.hyperparameters import ExactMatchInput, FormatInput, HyperparametersInput
from api.schemas.jobs import PlanCreate
from core.datasets.examples import DataFormat, DataKind
from core.datasets.final_answers import ExactMatch, Extract
from core.errors import InvalidRequestError
from core.jobs.service import JobRequest
from core.plans.service import PlanRequest
from planner.plans import Priority, Wishes
from planner.setup import CheckpointSelection, InitLoraWeights, Method

_KINDS = {
    "messages": DataKind.CHAT,
    "sharegpt": DataKind.CHAT,
    "prompt_completion": DataKind.COMPLETION,
    "question_answer": DataKind.COMPLETION,
    "alpaca": DataKind.COMPLETION,
    "preference": DataKind.CHAT,
    "text": DataKind.TEXT,
}
_NO_HYPERPARAMETERS = HyperparametersInput()


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
        wishes=_wishes(body),
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


def _hyperparameters(body: PlanCreate) -> HyperparametersInput:
    method = body.method
    if method is not None and (method.type != "supervised" or method.dpo or method.reinforcement):
        asked = method.type if method.type != "supervised" else "dpo" if method.dpo else "reinforcement"
        raise InvalidRequestError(
            f"method.type {asked!r} is not supported. Use 'supervised': of preference pairs it trains the "
            "chosen answers.",
            code="unsupported_method",
            param="method.type",
        )
    newer = method.supervised.hyperparameters if method and method.supervised else None
    older = body.hyperparameters
    if newer and older and newer != older:
        raise InvalidRequestError(
            "hyperparameters and method.supervised.hyperparameters differ. Send one of them.", param="hyperparameters"
        )
    return newer or older or _NO_HYPERPARAMETERS


def _wishes(body: PlanCreate) -> Wishes:
    chosen = _hyperparameters(body)
    adapter = body.adapter
    targets = adapter.target_modules if adapter else None
    start = adapter.init_lora_weights if adapter else None
    whole = adapter.modules_to_save if adapter else None
    return Wishes(
        method=Method(adapter.method) if adapter and adapter.method != "auto" else None,
        lora_rank=adapter.r if adapter else None,
        lora_alpha=adapter.lora_alpha if adapter else None,
        lora_dropout=adapter.lora_dropout if adapter else None,
        lora_target_modules=tuple(targets) if targets is not None else None,
        use_rslora=adapter.use_rslora if adapter else None,
        use_dora=adapter.use_dora if adapter else None,
        init_lora_weights=InitLoraWeights(start) if start is not None else None,
        modules_to_save=tuple(whole) if whole is not None else None,
        optim=body.optim,
        n_epochs=chosen.n_epochs,
        batch_size=chosen.batch_size,
        learning_rate_multiplier=chosen.learning_rate_multiplier,
        max_length=body.max_length,
        gradient_checkpointing=body.gradient_checkpointing,
        per_device_train_batch_size=body.per_device_train_batch_size,
        packing=body.packing,
        torch_compile=body.torch_compile,
        learning_rate=body.learning_rate,
        warmup_ratio=body.warmup_ratio,
        weight_decay=body.weight_decay,
        validation_split=body.validation_split,
        checkpoint_selection=CheckpointSelection(body.checkpoint_selection) if body.checkpoint_selection else None,
        early_stopping_patience=body.early_stopping_patience,
        priority=Priority(body.priority),
    )
