"""Whether a plan is the one that a request describes."""

from core.db.plain import from_plain, to_plain
from core.errors import InvalidRequestError
from core.plans.models import Plan
from core.plans.params import param_of
from core.plans.service import PlanRequest, training_plan
from planner.plans import Wishes
from planner.recipe import choose_held_out
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
        ("exact_match", row.exact_match, to_plain(request.exact_match) if request.exact_match else None),
    ]
    if (
        row.wishes is None or from_plain(Wishes, row.wishes) != request.wishes
    ):  # else it was asked for in the same words
        compared += _wished(row, request.wishes)
    for param, planned, asked in compared:
        if asked is not None and planned != asked:
            raise InvalidRequestError(
                f"The plan {row.id} has {param} {planned}, this request {asked}. A plan is run exactly as it was "
                "quoted: send the planned value or leave it out, or ask for a new plan.",
                code="plan_mismatch",
                param=param,
            )


def _wished(row: Plan, wishes: Wishes) -> list[tuple[str, object, object]]:
    """What a plan has of everything that can be wished for, and what is wished: parameter, planned, asked."""
    plan = training_plan(row)
    setup, hyperparameters = plan.setup, plan.hyperparameters
    wished: dict[str, object] = {  # by the wishes' names
        "method": setup.method,
        "lora_rank": setup.lora_rank,
        "lora_alpha": setup.lora_alpha,
        "lora_dropout": setup.lora_dropout,
        "lora_target_modules": setup.lora_target_modules,
        "use_rslora": setup.use_rslora,
        "use_dora": setup.use_dora,
        "init_lora_weights": setup.init_lora_weights,
        "modules_to_save": setup.modules_to_save,
        "optim": setup.optimizer,
        "max_length": setup.max_length,
        "gradient_checkpointing": setup.gradient_checkpointing,
        "per_device_train_batch_size": setup.per_device_train_batch_size,
        "packing": setup.packing,
        "torch_compile": setup.torch_compile,
        "learning_rate": hyperparameters.learning_rate,
        "warmup_ratio": hyperparameters.warmup_ratio,
        "weight_decay": hyperparameters.weight_decay,
        "checkpoint_selection": hyperparameters.checkpoint_selection,
        "early_stopping_patience": hyperparameters.early_stopping_patience,
        "batch_size": setup.effective_batch_size,
        "n_epochs": hyperparameters.n_epochs,
        "learning_rate_multiplier": hyperparameters.learning_rate_multiplier,
    }
    compared = [(param_of(name), planned, getattr(wishes, name)) for name, planned in wished.items()]
    if wishes.validation_split is not None:
        asked_rows = choose_held_out(from_plain(DatasetStatistics, row.statistics), wishes)
        compared.append(("validation_split", hyperparameters.held_out_rows, asked_rows))
    return compared
