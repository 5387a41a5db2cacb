"""The choices that do not depend on memory: length, rank, batch, epochs, learning rate. Each says why."""

from dataclasses import dataclass, replace

from planner import constants as c
from planner.errors import InvalidSetupError
from planner.memory.adapters import check_adapter
from planner.model.spec import ALL_LINEAR, ModelSpec
from planner.options import RequestedConfig
from planner.reasons import Reason, reason
from planner.setup import CheckpointSelection, Hyperparameters, Method
from planner.statistics import DatasetStatistics
from planner.throughput import packed_rows

_EPOCHS = ((64, 6), (128, 4), (10_000, 3), (100_000, 2))  # examples below which, epochs; one above
_SHORT_RUN_EXAMPLES = 512  # below it the warmup takes a larger share, so that it is more than one or two steps


@dataclass(frozen=True)
class Length:
    """Tokens per row, and what it cuts off."""

    max_length: int
    packing: bool
    truncated_examples: int
    truncated_tokens: int
    reason: Reason


def check_requested(spec: ModelSpec, requested: RequestedConfig) -> None:
    """Raise InvalidSetupError for numbers out of range and for options that contradict each other or the model."""
    requested.check_bounds()
    if requested.method is Method.FULL and requested.about_the_adapter:
        raise InvalidSetupError(
            f"Full fine-tuning trains no adapter, but {', '.join(requested.about_the_adapter)} is set. "
            "Drop it or choose lora or qlora.",
            "method",
        )
    if requested.method is not Method.FULL:
        check_adapter(spec, choose_targets(requested), requested)
    if requested.learning_rate is not None and requested.learning_rate_multiplier is not None:
        raise InvalidSetupError(
            "learning_rate and learning_rate_multiplier are both set; the first is already final.",
            "learning_rate_multiplier",
        )
    rows, micro = requested.batch_size, requested.per_device_train_batch_size
    if rows is not None and micro is not None and rows % micro:
        raise InvalidSetupError(
            f"batch_size {rows} is not a multiple of per_device_train_batch_size {micro}; "
            f"{rows - rows % micro or micro} and {rows + micro - rows % micro} are.",
            "batch_size",
        )


def choose_length(
    spec: ModelSpec, statistics: DatasetStatistics, requested: RequestedConfig, *, may_pack: bool
) -> Length:
    """The longest example rounded up, capped by the model and the user; longer rows only to pack into."""
    limit = spec.max_position_embeddings
    if requested.max_length is not None and requested.max_length > limit:
        raise InvalidSetupError(
            f"max_length is {requested.max_length}, but the model reads at most {limit} tokens.", "max_length"
        )
    rounded = -(-max(1, statistics.longest) // c.LENGTH_STEP) * c.LENGTH_STEP
    length = requested.max_length or min(rounded, limit)
    packed = requested.max_length or min(max(rounded, _packed_length(statistics, requested)), limit)
    packing = requested.packing or (
        requested.packing is None and may_pack and _is_worth_packing(statistics, requested, packed)
    )
    if packing:
        length = packed
        _check_packing(statistics, requested, packed)
    seen = max(1, len(statistics.token_lengths))
    over = [tokens - length for tokens in statistics.token_lengths if tokens > length]
    scale = statistics.examples / seen
    examples, cut = round(len(over) * scale), round(sum(over) * scale)
    then = (reason("packed"),) if packing else ()
    if examples:
        who = "max_length" if requested.max_length is not None else "context"
        then = (*then, reason(f"cut_at_{who}", tokens=cut, examples=examples))
    why = reason("length", longest=statistics.longest, max_length=length, then=then)
    return Length(length, packing, examples, cut, why)


def _packed_length(statistics: DatasetStatistics, requested: RequestedConfig) -> int:
    """Tokens of a row that holds as many examples as an unpacked optimizer step, up to a length that is cheap."""
    step = _examples_per_step(statistics, requested) * statistics.tokens / max(1, statistics.examples)
    return int(min(c.PACKED_LENGTH, step)) // c.LENGTH_STEP * c.LENGTH_STEP


def _is_worth_packing(statistics: DatasetStatistics, requested: RequestedConfig, length: int) -> bool:
    rows = packed_rows(statistics, length)
    is_short = statistics.tokens / max(1, statistics.examples) < length / 2
    return rows >= c.PACKED_ROWS_MINIMUM and is_short and _keeps_steps(statistics, requested, rows)


def _keeps_steps(statistics: DatasetStatistics, requested: RequestedConfig, rows: int) -> bool:
    """Whether a packed epoch has about the optimizer steps of one without packing, at one row a step if need be."""
    return rows >= c.PACKED_STEPS_SHARE * statistics.examples / _examples_per_step(statistics, requested)


def _check_packing(statistics: DatasetStatistics, requested: RequestedConfig, length: int) -> None:
    rows, per_step = packed_rows(statistics, length), _examples_per_step(statistics, requested)
    if not _keeps_steps(statistics, requested, rows):
        raise InvalidSetupError(
            f"packing puts {statistics.examples:,} examples into {rows:,} rows of {length:,} tokens, so an epoch would "
            f"have at most {rows:,} optimizer steps, where it has {-(-statistics.examples // per_step):,} without: too "
            "few to learn from. Leave packing out, or make max_length shorter.",
            "packing",
        )


def _examples_per_step(statistics: DatasetStatistics, requested: RequestedConfig) -> int:
    """Examples of an optimizer step without packing."""
    unpinned = replace(requested, per_device_train_batch_size=None)  # which counts packed rows
    return choose_batch_size(statistics.examples, requested.method or Method.LORA, unpinned)


def choose_packed_batch(statistics: DatasetStatistics, length: int, requested: RequestedConfig) -> int:
    """Packed rows of an optimizer step that hold the examples of one without packing."""
    per_row = statistics.examples / packed_rows(statistics, length)
    rows = max(1, int(_examples_per_step(statistics, requested) / per_row))
    micro = requested.per_device_train_batch_size
    return rows if micro is None else micro * max(1, rows // micro)


def choose_rank(spec: ModelSpec, statistics: DatasetStatistics, targets: tuple[str, ...]) -> int:
    """The smallest power of two whose adapter can hold what the data set teaches, within the offered range.

    Capacity: about 2 bits a parameter (Allen-Zhu & Li 2024); need: about 1 bit a trained token (Schulman et al. 2025).
    """
    rank = c.SMALLEST_RANK
    need = statistics.trained_tokens * c.BITS_PER_TRAINED_TOKEN
    while rank < c.LARGEST_RANK and spec.lora_parameters(rank, targets) * c.BITS_PER_ADAPTER_PARAMETER < need:
        rank *= 2
    return rank


def choose_targets(requested: RequestedConfig) -> tuple[str, ...]:
    """All decoder linears, experts included, unless the user names modules."""
    return requested.lora_target_modules or (ALL_LINEAR,)


def choose_alpha(rank: int, requested: RequestedConfig) -> int:
    """Twice the rank, which scales adapters by 2 at any rank; rank-stabilised scaling wants one alpha for all ranks."""
    if requested.lora_alpha is not None:
        return requested.lora_alpha
    return c.RSLORA_ALPHA if requested.use_rslora else 2 * rank


def choose_batch_size(rows: int, method: Method, requested: RequestedConfig) -> int:
    """Rows per optimizer step: enough steps an epoch first, then up to what the method tolerates."""
    if requested.batch_size is not None:
        return requested.batch_size
    largest = 64 if method is Method.FULL else 32  # LoRA loses to full fine-tuning at large batches
    wanted = max(4, rows // c.ROWS_PER_STEP_SHARE)
    batch = min(largest, 1 << (wanted.bit_length() - 1))
    micro = requested.per_device_train_batch_size
    return batch if micro is None else micro * max(1, batch // micro)


def choose_epochs(examples: int, requested: RequestedConfig) -> int:
    """More passes over small sets."""
    if requested.n_epochs is not None:
        return requested.n_epochs
    return next((epochs for below, epochs in _EPOCHS if examples < below), 1)


def choose_learning_rate(spec: ModelSpec, method: Method, requested: RequestedConfig) -> float:
    """Peak rate, falling with the model's width; ten times higher for LoRA, at any rank (Schulman et al. 2025,
    "LoRA Without Regret": 5e-5 x 10 x (2000 / hidden_size)^0.781 for Llama models).
    """
    if requested.learning_rate is not None:
        return requested.learning_rate
    rate = c.LEARNING_RATE_AT_2000 * (2000 / spec.hidden_size) ** c.LEARNING_RATE_EXPONENT
    if method is not Method.FULL:
        rate *= c.LORA_LEARNING_RATE_FACTOR
    return float(f"{rate * (requested.learning_rate_multiplier or 1.0):.2g}")


def choose_held_out(statistics: DatasetStatistics, requested: RequestedConfig) -> int:
    """Rows of the training file that are evaluated and not trained: a function of the data alone unless it is set.

    Raises InvalidSetupError for a split that is no share and no number of rows, that leaves nothing to train, or that
    stands beside a validation file.
    """
    split, rows = requested.validation_split, statistics.examples
    if split is not None and split >= 1 and split != int(split):
        raise InvalidSetupError(
            f"validation_split is {split:g}; it must be a share below 1, or a whole number of rows.", "validation_split"
        )
    if statistics.validation_examples:
        if split:
            raise InvalidSetupError(
                "validation_split holds rows of the training file out, but there is a validation file to evaluate on. "
                "Leave one of them out.",
                "validation_split",
            )
        return 0
    if split is None:
        return max(0, min(int(rows * c.VALIDATION_SPLIT), c.MOST_HELD_OUT, rows - 1))
    wanted = max(1, round(rows * split)) if 0 < split < 1 else int(split)
    if wanted >= rows:
        raise InvalidSetupError(
            f"validation_split {split:g} would hold out {wanted:,} of {rows:,} rows and leave none to train. Name a "
            "smaller number of rows, or a share below 1.",
            "validation_split",
        )
    return wanted


def choose_hyperparameters(
    spec: ModelSpec, statistics: DatasetStatistics, method: Method, requested: RequestedConfig
) -> Hyperparameters:
    """Everything that decides the result but not the memory.

    Raises InvalidSetupError where nothing is evaluated for what needs it, and what `choose_held_out` does.
    """
    defaults = Hyperparameters(n_epochs=1, learning_rate=1e-4)
    warmup = 0.1 if statistics.examples < _SHORT_RUN_EXAMPLES else defaults.warmup_ratio
    decay = 0.01 if method is Method.FULL else defaults.weight_decay
    chosen = Hyperparameters(
        n_epochs=choose_epochs(statistics.examples, requested),
        learning_rate=choose_learning_rate(spec, method, requested),
        warmup_ratio=warmup if requested.warmup_ratio is None else requested.warmup_ratio,
        lr_scheduler_type=requested.lr_scheduler_type or defaults.lr_scheduler_type,
        weight_decay=decay if requested.weight_decay is None else requested.weight_decay,
        learning_rate_multiplier=requested.learning_rate_multiplier or 1.0,
        held_out_rows=choose_held_out(statistics, requested),
        checkpoint_selection=requested.checkpoint_selection or CheckpointSelection.BEST,
        early_stopping_patience=requested.early_stopping_patience,
    )
    is_evaluated = bool(statistics.validation_examples or chosen.held_out_rows)
    if requested.checkpoint_selection is CheckpointSelection.BEST and not is_evaluated:
        raise InvalidSetupError(
            "checkpoint_selection is 'best', but no row is held out to find the best one by. Give a validation_file or "
            "a validation_split, or leave it out.",
            "checkpoint_selection",
        )
    if chosen.early_stopping_patience and not is_evaluated:
        raise InvalidSetupError(
            f"early_stopping_patience is {chosen.early_stopping_patience}, but nothing is evaluated: of "
            f"{statistics.examples:,} rows none is held out. Give a validation_file or a validation_split, or leave it "
            "out.",
            "early_stopping_patience",
        )
    return chosen
