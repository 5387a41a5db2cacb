"""What of a run can be chosen: by OpenAI's names, and by PEFT's and TRL's for what OpenAI has no name for."""

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from api.schemas.base import RequestBody, ResponseBody
from api.schemas.options import with_options, with_planned

ChatTemplateName = Literal["chatml", "llama3", "zephyr"]

# Taken in, so that the refusal can name the method instead of an unknown field.
Unsupported = Annotated[Any, WithJsonSchema({"type": "null", "description": "Not supported."})]

ColumnName = Annotated[str, Field(max_length=200)]


class HyperparametersInput(with_options(RequestBody, "hyperparameters")):  # type: ignore[misc]
    """OpenAI's three. Leave one out, or say "auto", and the planner decides it."""


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


class AdapterInput(with_options(RequestBody, "adapter")):  # type: ignore[misc]
    """How the base model is adapted, in PEFT's words."""


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


class HyperparametersObject(with_planned(ResponseBody, "hyperparameters")):  # type: ignore[misc]
    """OpenAI's three, resolved."""


class SupervisedObject(ResponseBody):
    """Options of supervised fine-tuning, resolved."""

    hyperparameters: HyperparametersObject


class MethodObject(ResponseBody):
    """The kind of fine-tuning."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedObject


class AdapterObject(with_planned(ResponseBody, "adapter")):  # type: ignore[misc]
    """How the base model is adapted, resolved. All but `method` are null for `full`."""
