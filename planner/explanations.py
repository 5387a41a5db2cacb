"""Why a plan is what it is, in sentences, and what every other run would have meant."""

import math
from collections.abc import Sequence

from planner import constants as c
from planner.adapters import FACTORISED, adapted_rows, whole_parameters
from planner.calibration import COVERAGE
from planner.candidates import LADDER, Candidate, Question, allowed_methods
from planner.memory import Correction
from planner.model_spec import ModelSpec
from planner.plans import Alternative, Priority, Wishes
from planner.precision import FLOAT16, FLOAT32
from planner.recipe import Length, choose_learning_rate, choose_rank, choose_targets
from planner.schedule import warmup_steps
from planner.setup import CheckpointSelection, Hyperparameters, InitLoraWeights, Method, TrainingSetup
from planner.throughput import packed_rows
from planner.wording import counted

GIB = 1 << 30
_SAME_RATE = 0.01  # of the usual rate: a difference that is only rounding
_HOT = 10  # times the usual rate: beyond what was ever best in published sweeps
_FLOAT16 = (
    "{name} has no bfloat16: the base computes in float16, with adapters in float32 and a loss scale that follows the "
    "gradients, so that small ones are kept. A step whose gradient overflows is taken again at half the scale."
)
_FLOAT32 = (
    "{name}, without instructions for bfloat16: the base computes in float32, which is faster there and takes twice "
    "the memory."
)
_COMPILED = (
    "Decoder layers are compiled with torch.compile, as you asked. Memory, time and price are those of the run without "
    "it; compiling takes a few minutes of device time at the start, which a long run earns back."
)
_LIGER = (
    "Liger's kernels compute {what} on {name}; before the first step the run proves that its loss and gradient are the "
    "same with them, and goes on without one where they are not."
)
NAMES = {Method.FULL: "Full fine-tuning", Method.LORA: "LoRA", Method.QLORA: "QLoRA"}


def gib(size_bytes: int) -> str:
    """A size for people: whole tenths of a GiB."""
    return f"{size_bytes / GIB:.1f} GiB"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def explain(question: Question, candidates: Sequence[Candidate], chosen: Candidate, length: Length) -> tuple[str, ...]:
    """One sentence for each step of the policy, in its order."""
    sentences = [length.reason, _method(question, candidates, chosen)]
    if chosen.setup.method is not Method.FULL:
        sentences += [_rank(question, chosen), *describe_variant(question.spec, chosen.setup)]
    sentences += [
        _batch(question, candidates, chosen),
        _passes(question, chosen),
        _held_out(question, chosen),
        _memory(chosen),
        _price(chosen),
    ]
    if chosen.setup.dtype == FLOAT16:
        sentences.append(_FLOAT16.format(name=chosen.device.name))
    if chosen.setup.dtype == FLOAT32:
        sentences.append(_FLOAT32.format(name=chosen.device.name))
    if chosen.setup.torch_compile:
        sentences.append(_COMPILED)
    if what := _by_liger(question.spec, chosen.setup):
        sentences.append(_LIGER.format(what=what, name=chosen.device.name))
    if chosen.hyperparameters.early_stopping_patience is not None:
        sentences.append(_early_stop(chosen.hyperparameters.early_stopping_patience))
    if question.spec.is_surveyed:
        sentences.append(
            f"The planner has no formula for {question.spec.model_type}: its parameters were counted on the built "
            "model, and its memory read off training steps rehearsed without weights."
        )
    return tuple(sentences)


def describe_alternatives(
    question: Question, candidates: Sequence[Candidate], chosen: Candidate
) -> tuple[Alternative, ...]:
    """Every run considered, and why it is not the plan."""
    return tuple(
        Alternative(
            method=x.setup.method,
            lora_rank=x.setup.lora_rank,
            gradient_checkpointing=x.setup.gradient_checkpointing,
            per_device_train_batch_size=x.setup.per_device_train_batch_size,
            gradient_accumulation_steps=x.setup.gradient_accumulation_steps,
            optimizer=x.setup.optimizer,
            device=x.device.name,
            device_class=x.device.device_class,
            fits=x.fits,
            required_bytes=x.memory.required_bytes,
            headroom_bytes=x.headroom_bytes,
            seconds=x.speed.seconds,
            credits=x.quote.credits,
            chosen=x is chosen,
            reason=_why_not(question, x, chosen),
        )
        for x in candidates
    )


def _method(question: Question, candidates: Sequence[Candidate], chosen: Candidate) -> str:
    wishes, method = question.wishes, chosen.setup.method
    name, device = NAMES[method], chosen.device
    if wishes.method is not None:
        sentence = f"{name}, as you asked"
        return sentence + (
            f"; priority {wishes.priority} does not change a method you set." if _moot(question) else "."
        )
    if wishes.priority is Priority.ECONOMY:
        return f"{name}: the cheapest quote of all runs that fit {device.name}."
    said = []
    for other in LADDER[: LADDER.index(method)]:
        if other not in allowed_methods(question):
            continue
        if other is Method.FULL and wishes.priority is Priority.AUTO and _is_small(question):
            said.append(
                f"too little data for full fine-tuning, which pays from about {c.FULL_FROM_TRAINED_TOKENS:,} scored "
                f"tokens (this has {question.statistics.trained_tokens:,}); {name} is cheaper, forgets less of what "
                "the model knows and makes a small file"
            )
            continue
        tried = [x for x in candidates if x.setup.method is other]
        if not tried:
            said.append(f"{NAMES[other]} is not for {device.name}, which computes in float16")
            continue
        least = min(tried, key=lambda x: -x.headroom_bytes)
        said.append(
            f"{NAMES[other]} needs at least {gib(least.memory.required_bytes)} and "
            f"{least.device.name} has {gib(least.device.free_bytes)} free"
        )
    return f"{name}: {'; '.join(said)}." if said else f"{name}: it fits without compressing the model."


def _moot(question: Question) -> bool:
    return question.wishes.priority is Priority.QUALITY


def _is_small(question: Question) -> bool:
    return question.statistics.trained_tokens < c.FULL_FROM_TRAINED_TOKENS


def _rank(question: Question, chosen: Candidate) -> str:
    setup, wishes = chosen.setup, question.wishes
    targets = choose_targets(wishes)
    parameters = question.spec.lora_parameters(setup.lora_rank or 0, targets)
    where = "all linear layers" if wishes.lora_target_modules is None else ", ".join(targets)
    sentence = f"The adapter has {parameters:,} parameters to train (rank {setup.lora_rank} on {where})"
    if wishes.lora_rank is not None:
        return f"{sentence}; the rank is as you asked."
    wanted = choose_rank(question.spec, question.statistics, targets)
    if setup.lora_rank != wanted:
        return f"{sentence}: rank {wanted} would suit the data set, but only {setup.lora_rank} fits."
    return f"{sentence}, enough for what {question.statistics.trained_tokens:,} scored tokens can teach."


def describe_variant(spec: ModelSpec, setup: TrainingSetup) -> list[str]:
    """A sentence for each choice that makes an adapter another one than plain LoRA."""
    said = []
    if setup.use_rslora:
        scale = (setup.lora_alpha or 0) / math.sqrt(setup.lora_rank or 1)
        said.append(
            f"Rank-stabilised: adapters are scaled by {scale:.2g}, alpha {setup.lora_alpha} over the square root of "
            "the rank, so that a higher rank learns no slower."
        )
    if setup.use_dora:
        said.append(
            f"DoRA: {adapted_rows(spec, setup):,} lengths of weight rows are trained apart from their directions, "
            "nearer to full fine-tuning at low ranks; every adapted layer keeps its output once more."
        )
    if setup.init_lora_weights in FACTORISED:
        where = {
            InitLoraWeights.PISSA: "the largest singular directions of each weight (PiSSA)",
            InitLoraWeights.OLORA: "the QR decomposition of each weight (OLoRA)",
        }[setup.init_lora_weights]
        said.append(
            f"Adapters start at {where} and are published as ordinary ones of rank {2 * (setup.lora_rank or 0)}, which "
            "fit the unchanged base model."
        )
    if setup.modules_to_save:
        names = (
            "embed_tokens, which is lm_head too," if spec.tie_word_embeddings else " and ".join(setup.modules_to_save)
        )
        said.append(
            f"Trained whole beside the adapters: {names} with {whole_parameters(spec, setup):,} parameters in "
            f"{setup.adapter_dtype or 'float32'}, as new tokens or another language need it."
        )
    return said


def _batch(question: Question, candidates: Sequence[Candidate], chosen: Candidate) -> str:
    setup = chosen.setup
    rows, steps = setup.effective_batch_size, chosen.speed.total_steps
    what = "rows" if rows > 1 else "row"
    if setup.packing:
        each = question.statistics.examples / packed_rows(question.statistics, setup.max_length)
        what = f"packed {what} of about {each:,.0f} examples"
    asked = question.wishes.batch_size
    start = f"{rows} {what} per optimizer step"
    if not setup.packing and asked is not None and asked > rows:
        start = f"A batch of {asked:,} is more than there is to train on, so a step takes all {rows:,} rows"
    sentence = (
        f"{start}, {setup.per_device_train_batch_size} at a time"
        + (
            f" and {setup.gradient_accumulation_steps} times accumulated"
            if setup.gradient_accumulation_steps > 1
            else ""
        )
        + f", make {counted(steps, 'step')} in {counted(chosen.hyperparameters.n_epochs, 'epoch')}"
    )
    if not setup.gradient_checkpointing:
        return f"{sentence}; memory holds all intermediate results, so nothing is computed twice."
    if question.wishes.gradient_checkpointing:
        return f"{sentence}; activations are recomputed, as you asked."
    plain = [x for x in candidates if x.setup.method is setup.method and not x.setup.gradient_checkpointing]
    least = min(plain, key=lambda x: x.memory.required_bytes, default=None)
    if least is None or least.fits:
        return f"{sentence}; recomputing activations lets more rows run at a time, which is faster here."
    return f"{sentence}; activations are recomputed, since keeping them needs {gib(least.memory.required_bytes)}."


def _passes(question: Question, chosen: Candidate) -> str:
    rate = chosen.hyperparameters.learning_rate
    usual = choose_learning_rate(question.spec, chosen.setup.method, Wishes())
    kind = "full fine-tuning" if chosen.setup.method is Method.FULL else "adapters"
    where = f"usual for {kind} at a hidden size of {question.spec.hidden_size:,}"
    sentence = f"The learning rate {describe_schedule(chosen.hyperparameters, chosen.speed.total_steps)}"
    times = rate / usual
    if abs(times - 1) <= _SAME_RATE:
        return f"{sentence}; that peak is {where}."
    sentence += f"; that peak is {_times(times)} the {usual:g} {where}, as you asked"
    if times >= _HOT:
        return f"{sentence}. Rates so far above the usual one mostly make training diverge."
    return f"{sentence}. At so low a rate the model hardly changes." if times <= 1 / _HOT else f"{sentence}."


def describe_schedule(hyperparameters: Hyperparameters, total_steps: int) -> str:
    """How the learning rate moves over the steps that a run has, as what completes "The learning rate …"."""
    peak, rising = hyperparameters.learning_rate, warmup_steps(total_steps, hyperparameters.warmup_ratio)
    if total_steps == 1:
        return f"is {peak:g} in the only step"
    start = f"rises over {rising:,} of {total_steps:,} steps to {peak:g}" if rising > 1 else f"starts at {peak:g}"
    if rising == total_steps - 1:
        return f"{start} and never falls, since the warmup leaves one step"
    return f"{start} and falls on a {hyperparameters.lr_scheduler_type}"


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= _HOT else f"{factor:.2g} times"


def _held_out(question: Question, chosen: Candidate) -> str:
    """What is measured on, and whether that tells anything."""
    statistics, rows = question.statistics, chosen.hyperparameters.held_out_rows
    if statistics.validation_examples:
        rows = min(statistics.validation_examples, c.MOST_HELD_OUT)
        sentence = f"The loss is measured on {counted(rows, 'row')} of the validation file"
    elif rows:
        held_out = f"{counted(rows, 'row')} of {statistics.examples:,} {'is' if rows == 1 else 'are'} held out"
        sentence = f"{held_out} to measure on, the same in every run on this file"
    else:
        return (
            "No row is held out, so nothing shows whether the model learned more than its own rows: "
            "give a validation_file or a validation_split to measure it."
        )
    few = f"; fewer than {c.TELLING_ROWS} are too few to tell two runs apart" if rows < c.TELLING_ROWS else ""
    if chosen.hyperparameters.checkpoint_selection is CheckpointSelection.LAST:
        return f"{sentence}{few}. The last step's model is published, as you asked, whatever its loss."
    return f"{sentence}{few}. The model of the lowest loss among the evaluations is published."


def _by_liger(spec: ModelSpec, setup: TrainingSetup) -> str:
    """What Liger's kernels do in this run, in words; empty where they do nothing."""
    parts = {
        "norms": setup.fused_norms and spec.family.float32_norm_weight,
        "the rotary embedding": setup.fused_rotary,
        "the MLP's activation": setup.fused_activation,
    }
    *first, last = [part for part, is_fused in parts.items() if is_fused] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _early_stop(patience: int) -> str:
    evaluations = "1 evaluation brings" if patience == 1 else f"{patience} evaluations in a row bring"
    return (
        f"Training ends early when {evaluations} no lower validation loss; "
        "time and price are for all epochs, and what is not used is not charged."
    )


def _memory(chosen: Candidate) -> str:
    memory, learned = chosen.memory, chosen.memory.correction
    sentence = (
        f"{chosen.device.name}: {gib(memory.device_bytes)} predicted plus {gib(memory.bound_bytes)} of safety margin, "
        f"of {gib(chosen.device.free_bytes)} free now"
    )
    if not learned.runs or learned == Correction(runs=learned.runs):
        return f"{sentence}."
    taught = counted(learned.runs, "finished run")
    sentence += f"; {taught} like it here moved the prediction by {learned.ratio - 1:+.1%}"
    if learned.bound_share is None:
        return f"{sentence}."
    return f"{sentence}, and the margin holds for {COVERAGE:.0%} of runs."


def _price(chosen: Candidate) -> str:
    quote, pace = chosen.quote, chosen.speed.pace
    runs = counted(pace.runs, "finished run")
    learned = f"; {runs} like it here took {pace.ratio:.2f} times the time predicted for a step"
    return (
        f"About {duration(quote.predicted_seconds)} at {quote.credits_per_hour:,} credits an hour is "
        f"{counted(quote.predicted_credits, 'credit')}; the quote of {quote.credits:,} covers "
        f"{duration(quote.billed_seconds)}, and only what is used is charged{learned if pace.ratio != 1 else ''}."
    )


def _why_not(question: Question, x: Candidate, chosen: Candidate) -> str:
    if x is chosen:
        return "the plan"
    if not x.fits:
        return f"needs {gib(-x.headroom_bytes)} more than is free"
    if x.setup.method is not chosen.setup.method:
        return _other_method(question, x, chosen)
    if (x.setup.lora_rank or 0) < (chosen.setup.lora_rank or 0):
        return "a higher rank fits"
    if x.setup.optimizer != chosen.setup.optimizer:
        return "the usual optimizer fits"
    if x.quote.credits > chosen.quote.credits:
        return f"{x.quote.credits - chosen.quote.credits:,} credits more"
    if x.speed.seconds > chosen.speed.seconds * (1 + c.TIME_TOLERANCE):
        return f"{duration(x.speed.seconds - chosen.speed.seconds)} slower"
    return "no faster, and fills the device less well"


def _other_method(question: Question, x: Candidate, chosen: Candidate) -> str:
    if question.wishes.priority is Priority.ECONOMY:
        more = x.quote.credits - chosen.quote.credits
        return f"{more:,} credits more" if more > 0 else "costs the same and compresses more"
    if LADDER.index(x.setup.method) > LADDER.index(chosen.setup.method):
        return f"compresses more than {NAMES[chosen.setup.method]}, which fits"
    return "too little data for it: an adapter is cheaper and forgets less"
