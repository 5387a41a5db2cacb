"""Whether a plan is the one that a request describes."""

from core.db.plain import to_plain
from core.errors import InvalidRequestError
from core.plans.models import Plan
from core.plans.service import PlanRequest, training_plan


def check_same_run(row: Plan, request: PlanRequest) -> None:
    """Refuse a plan that was made for another run than `request` describes; what it leaves open agrees with anything.

    Raises InvalidRequestError (`plan_mismatch`) that names the first difference.
    """
    plan, wishes = training_plan(row), request.wishes
    setup, hyperparameters = plan.setup, plan.hyperparameters
    for param, planned, asked in (
        ("model", row.model, request.model),
        ("training_file", row.training_file_id, request.training_file_id),
        ("validation_file", row.validation_file_id, request.validation_file_id),
        ("chat_template", row.chat_template, request.chat_template),
        ("exact_match", row.exact_match, to_plain(request.exact_match) if request.exact_match else None),
        ("adapter.method", setup.method, wishes.method),
        ("adapter.r", setup.lora_rank, wishes.lora_rank),
        ("adapter.lora_alpha", setup.lora_alpha, wishes.lora_alpha),
        ("adapter.lora_dropout", setup.lora_dropout, wishes.lora_dropout),
        ("adapter.target_modules", setup.lora_target_modules, wishes.lora_target_modules),
        ("adapter.use_rslora", setup.use_rslora, wishes.use_rslora),
        ("adapter.use_dora", setup.use_dora, wishes.use_dora),
        ("adapter.init_lora_weights", setup.init_lora_weights, wishes.init_lora_weights),
        ("adapter.modules_to_save", setup.modules_to_save, wishes.modules_to_save),
        ("optim", setup.optimizer, wishes.optim),
        ("max_length", setup.max_length, wishes.max_length),
        ("gradient_checkpointing", setup.gradient_checkpointing, wishes.gradient_checkpointing),
        ("per_device_train_batch_size", setup.per_device_train_batch_size, wishes.per_device_train_batch_size),
        ("packing", setup.packing, wishes.packing),
        ("torch_compile", setup.torch_compile, wishes.torch_compile),
        ("learning_rate", hyperparameters.learning_rate, wishes.learning_rate),
        ("warmup_ratio", hyperparameters.warmup_ratio, wishes.warmup_ratio),
        ("weight_decay", hyperparameters.weight_decay, wishes.weight_decay),
        ("early_stopping_patience", hyperparameters.early_stopping_patience, wishes.early_stopping_patience),
        ("hyperparameters.batch_size", setup.effective_batch_size, wishes.batch_size),
        ("hyperparameters.n_epochs", hyperparameters.n_epochs, wishes.n_epochs),
        (
            "hyperparameters.learning_rate_multiplier",
            hyperparameters.learning_rate_multiplier,
            wishes.learning_rate_multiplier,
        ),
    ):
        if asked is not None and planned != asked:
            raise InvalidRequestError(
                f"The plan {row.id} has {param} {planned}, this request {asked}. A plan is run exactly as it was "
                "quoted: send the planned value or leave it out, or ask for a new plan.",
                code="plan_mismatch",
                param=param,
            )
