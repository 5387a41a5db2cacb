"""What of a run can be chosen: by OpenAI's names, and by PEFT's and TRL's for what OpenAI has no name for."""

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from api.schemas.base import OrAuto, RequestBody, ResponseBody
from planner.plans import TrainingPlan
from planner.setup import InitLoraWeights, Method, TrainingSetup

ChatTemplateName = Literal["chatml", "llama3", "zephyr"]

# Taken in, so that the refusal can name the method instead of an unknown field.
Unsupported = Annotated[Any, WithJsonSchema({"type": "null", "description": "Not supported."})]

ModuleNames = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=64)]
ColumnName = Annotated[str, Field(max_length=200)]


class HyperparametersInput(RequestBody):
    """OpenAI's three. Leave one out, or say "auto", and the planner decides it."""

    n_epochs: Annotated[int | None, Field(ge=1, le=100), OrAuto()] = Field(
        None, description="Passes over the training file."
    )
    batch_size: Annotated[int | None, Field(ge=1, le=1024), OrAuto()] = Field(
        None, description="Examples per optimizer step."
    )
    learning_rate_multiplier: Annotated[float | None, Field(gt=0.0, le=100.0, allow_inf_nan=False), OrAuto()] = Field(
        None, description="Times the learning rate that the planner takes for the method."
    )


class SupervisedInput(RequestBody):
    """Options of supervised fine-tuning."""

    hyperparameters: HyperparametersInput | None = None


class MethodInput(RequestBody):
    """The kind of fine-tuning. `supervised` is the only one."""

    type: str = Field(
        max_length=40,
        description="Others are refused with `unsupported_method`.",
        json_schema_extra={"enum": ["supervised"]},
    )
    supervised: SupervisedInput | None = None
    dpo: Unsupported = None
    reinforcement: Unsupported = None


class AdapterInput(RequestBody):
    """How the base model is adapted, in PEFT's words."""

    method: Literal["auto", "full", "lora", "qlora"] = Field(
        "auto",
        description="`full`: every weight. `lora`: adapters on a 16-bit base. `qlora`: adapters on a 4-bit base.",
    )
    r: Annotated[int | None, Field(ge=1, le=512), OrAuto()] = Field(None, description="Rank of the adapters.")
    lora_alpha: Annotated[int | None, Field(ge=1, le=2048), OrAuto()] = Field(
        None, description="Scale of the adapters, over r."
    )
    lora_dropout: Annotated[float | None, Field(ge=0.0, le=0.9, allow_inf_nan=False), OrAuto()] = None
    target_modules: Annotated[ModuleNames | None, OrAuto()] = Field(
        None, description='Names of linear layers, e.g. ["q_proj", "v_proj"].'
    )
    use_rslora: Annotated[bool | None, OrAuto()] = Field(
        None, description="Scale by lora_alpha over the square root of r (rank-stabilised LoRA). Default false."
    )
    use_dora: Annotated[bool | None, OrAuto()] = Field(
        None, description="Train the length of every row of an adapted weight apart from its direction. Default false."
    )
    init_lora_weights: Annotated[Literal["default", "pissa", "olora"] | None, OrAuto()] = Field(
        None,
        description="Where adapters start. `pissa` and `olora`: at factors of the base's weights; published as "
        "ordinary adapters of twice the rank, which fit the unchanged base model.",
    )
    modules_to_save: Annotated[ModuleNames | None, OrAuto()] = Field(
        None, description="Trained whole beside the adapters: `embed_tokens`, `lm_head` or both."
    )


class FormatInput(RequestBody):
    """Which columns of the file mean what, where detection got it wrong or could not tell, and what of broken rows."""

    shape: (
        Literal["messages", "sharegpt", "prompt_completion", "question_answer", "alpaca", "preference", "text"] | None
    ) = Field(None, description="Null: as detected.")
    columns: dict[ColumnName, ColumnName] = Field(
        default_factory=dict,
        max_length=32,
        description="Each role of the shape and the column that holds it. Roles left out have their usual name; beside "
        "those of the shape these are system, input, context, history and label. Mapped to an empty text, a role is "
        "not read. In a table without a row of names, columns are called column_1, column_2 and so on.",
        examples=[{"prompt": "question", "completion": "answer"}],
    )
    skip_broken_rows: bool = Field(
        False, description="Leave out rows that cannot be used; how many is in the plan's notices."
    )


class ExactMatchInput(RequestBody):
    """Answers to held-out prompts, before and after training, compared with a reference as on GSM8K."""

    extract: Literal["after_hashes", "last_number", "text"] = Field(
        description="What of an answer counts: what follows its last `####`, its last number, or all of it."
    )
    column: str | None = Field(
        None, max_length=200, description="The column that holds the reference; null: the row's own answer."
    )
    rows: int = Field(32, ge=1, le=512, description="Held-out rows that are answered, at most.")
    max_new_tokens: int = Field(256, ge=1, le=2048, description="Length at which an answer is cut off.")


class ExactMatchObject(ResponseBody):
    """How answers are compared."""

    extract: Literal["after_hashes", "last_number", "text"]
    column: str | None
    rows: int
    max_new_tokens: int


class HyperparametersObject(ResponseBody):
    """OpenAI's three, resolved."""

    n_epochs: int
    batch_size: int = Field(description="Examples per optimizer step.")
    learning_rate_multiplier: float


class SupervisedObject(ResponseBody):
    """Options of supervised fine-tuning, resolved."""

    hyperparameters: HyperparametersObject


class MethodObject(ResponseBody):
    """The kind of fine-tuning."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedObject


class AdapterObject(ResponseBody):
    """How the base model is adapted, resolved. All but `method` are null for `full`."""

    method: Method
    r: int | None
    lora_alpha: int | None
    lora_dropout: float | None
    target_modules: list[str] | None
    use_rslora: bool | None
    use_dora: bool | None
    init_lora_weights: InitLoraWeights | None
    modules_to_save: list[str] | None


def show_adapter(setup: TrainingSetup) -> AdapterObject:
    """How the base model is adapted, as the wire shows it."""
    targets, whole, is_full = setup.lora_target_modules, setup.modules_to_save, setup.method is Method.FULL
    return AdapterObject(
        method=setup.method,
        r=setup.lora_rank,
        lora_alpha=setup.lora_alpha,
        lora_dropout=None if is_full else setup.lora_dropout,
        target_modules=None if targets is None else list(targets),
        use_rslora=None if is_full else setup.use_rslora,
        use_dora=None if is_full else setup.use_dora,
        init_lora_weights=None if is_full else setup.init_lora_weights,
        modules_to_save=None if whole is None else list(whole),
    )


def show_hyperparameters(plan: TrainingPlan) -> HyperparametersObject:
    """OpenAI's three as they were resolved."""
    return HyperparametersObject(
        n_epochs=plan.hyperparameters.n_epochs,
        batch_size=plan.setup.effective_batch_size,
        learning_rate_multiplier=plan.hyperparameters.learning_rate_multiplier,
    )
