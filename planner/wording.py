"""Sizes, times and the reasons of plans as people say them."""

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from planner.options import BY_NAME
from planner.reasons import Reason, Said

GIB = 1 << 30
MIB = 1 << 20


def gib(size_bytes: float) -> str:
    """A size as people compare it with a device."""
    if size_bytes < 1024:
        return counted(round(size_bytes), "byte")
    if size_bytes < GIB:
        return f"{size_bytes / MIB:.0f} MiB" if size_bytes >= MIB else f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes < 100 * GIB else f"{size_bytes / GIB:.0f} GiB"


def duration(seconds: float) -> str:
    """A time in the units people think in."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes >= 2 * 24 * 60:
        return counted(round(minutes / (24 * 60)), "day")
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(number: int, noun: str) -> str:
    """How many of a thing there are: 1 row, 2,000 rows. For nouns whose plural ends in s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class _Sentences(Formatter):
    """`str.format` whose specifications say how people read a value: a size, a time, or the noun that is counted."""

    def format_field(self, value: Any, spec: str) -> str:
        if isinstance(value, tuple):  # parts of a decision, with what stands between them
            return spec.join(self.vformat(SENTENCES[part.code], (), part.values) for part in value)
        match spec:
            case "" | "g" | ",.0f" | ".2g" | ".2f" | "+.1%" | ".0%" | ",":
                return format(value, spec)
            case "size":
                return gib(value)
            case "time":
                return duration(value)
            case "method":
                return METHODS[value]
        return counted(value, spec)


def sentence(reason: Said) -> str:
    """The reason in words."""
    return reason if isinstance(reason, str) else _FORMATTER.vformat(SENTENCES[reason.code], (), reason.values)


def sentences(reasons: Iterable[Said]) -> list[str]:
    """The reasons in words, in their order."""
    return [sentence(reason) for reason in reasons]


def why(reasons: Iterable[Said], code: str) -> str:
    """What the decision of this code was made because of; empty where that is not known."""
    found = next((one for one in reasons if isinstance(one, Reason) and one.code == code), Reason(code))
    said = _FORMATTER.format_field(found.values.get("because", ()), "; ")
    return said[:1].upper() + said[1:]


_FORMATTER = _Sentences()
METHODS = BY_NAME["method"].labels
SENTENCES: Mapping[str, str] = {
    # Length
    "length": "The longest example has {longest:,} tokens, so rows are {max_length:,} long{then}.",
    "packed": " and several examples share one, each attending to itself only",
    "cut_at_max_length": "; max_length cuts {tokens:,} tokens off {examples:,} examples",
    "cut_at_context": "; the model's context cuts {tokens:,} tokens off {examples:,} examples",
    # Method
    "method": "{method:method}: {because:; }.",
    "as_asked": "as you asked",
    "priority_is_moot": "priority {priority} does not change a method you set",
    "cheapest": "the cheapest quote of all runs that fit {device}",
    "too_little_data": "too little data for full fine-tuning, which pays from about {enough:,} scored tokens (this has "
    "{tokens:,}); {method:method} is cheaper, forgets less of what the model knows and makes a small file",
    "not_in_float16": "{method:method} is not for {device}, which computes in float16",
    "does_not_fit": "{method:method} needs at least {needed:size} and {device} has {free:size} free",
    "fits": "it fits without compressing the model",
    # Adapter
    "adapter": "The adapter has {parameters:,} parameters to train (rank {rank} on {where}){then}.",
    "all_linear": "all linear layers",
    "modules": "{names}",
    "rank_asked": "; the rank is as you asked",
    "rank_fits": ": rank {wanted} would suit the data set, but only {rank} fits",
    "rank_suits": ", enough for what {tokens:,} scored tokens can teach",
    "rslora": "Rank-stabilised: adapters are scaled by {scale:.2g}, alpha {alpha} over the square root of the rank, so "
    "that a higher rank learns no slower.",
    "dora": "DoRA: {rows:,} lengths of weight rows are trained apart from their directions, nearer to full fine-tuning "
    "at low ranks; every adapted layer keeps its output once more.",
    "starts_at_pissa": "Adapters start at the largest singular directions of each weight (PiSSA) and are published as "
    "ordinary ones of rank {rank}, which fit the unchanged base model.",
    "starts_at_olora": "Adapters start at the QR decomposition of each weight (OLoRA) and are published as ordinary "
    "ones of rank {rank}, which fit the unchanged base model.",
    "trained_whole": "Trained whole beside the adapters: {where} with {parameters:,} parameters in {dtype}, as new "
    "tokens or another language need it.",
    "tied_embedding": "embed_tokens, which is lm_head too,",
    # Batch
    "batch": "{start}, {micro} at a time{accumulated}: {steps:step} in {epochs:epoch}{then}.",
    "rows_per_step": "{rows:row} per optimizer step",
    "packed_rows_per_step": "{rows:packed row} of about {each:,.0f} examples per optimizer step",
    "batch_above_rows": "A batch of {asked:,} is more than there is to train on, so a step takes all {rows:,} rows",
    "accumulated": " and {times} times accumulated",
    "keeps_activations": "; memory holds all intermediate results, so nothing is computed twice",
    "recomputes_as_asked": "; activations are recomputed, as you asked",
    "recomputes_for_speed": "; recomputing activations lets more rows run at a time, which is faster here",
    "recomputes_to_fit": "; activations are recomputed, since keeping them needs {needed:size}",
    # Learning rate
    "rate": "The learning rate {schedule}; that peak is {peak}{then}.",
    "rate_in_only_step": "is {peak:g} in the only step",
    "rate_starts": "starts at {peak:g} and {then}",
    "rate_rises": "rises over {rising:,} of {steps:step} to {peak:g} and {then}",
    "rate_never_falls": "never falls, since the warmup leaves one step",
    "decay_cosine": "falls on a cosine",
    "decay_linear": "falls on a line",
    "decay_constant": "stays there",
    "decay_constant_with_warmup": "stays there",
    "decay_cosine_with_min_lr": "falls on a cosine to a tenth",
    "usual_for_full": "usual for full fine-tuning at a hidden size of {hidden:,}",
    "usual_for_adapters": "usual for adapters at a hidden size of {hidden:,}",
    "times_usual": "{times:.2g} times the {usual:g} {where}, as you asked",
    "many_times_usual": "{times:,.0f} times the {usual:g} {where}, as you asked",
    "rate_too_hot": ". Rates so far above the usual one mostly make training diverge",
    "rate_too_low": ". At so low a rate the model hardly changes",
    # Held-out rows
    "no_row_held_out": "No row is held out, so nothing shows whether the model learned more than its own rows: give a "
    "validation_file or a validation_split to measure it.",
    "held_out": "{rows:row} of {examples:,} {rows_are} held out to measure on, the same in every run on this file"
    "{few}. {then}",
    "measured_on_file": "The loss is measured on {rows:row} of the validation file{few}. {then}",
    "one_is": "is",
    "many_are": "are",
    "too_few_to_tell": "; fewer than {telling} are too few to tell two runs apart",
    "last_step_published": "The last step's model is published, as you asked, whatever its loss.",
    "best_step_published": "The model of the lowest loss among the evaluations is published.",
    "early_stopping": "Training ends early when {evaluations} no lower validation loss; time and price are for all "
    "epochs, and what is not used is not charged.",
    "one_evaluation": "1 evaluation brings",
    "evaluations_in_a_row": "{patience} evaluations in a row bring",
    # Memory and price
    "memory": "{device}: {predicted:size} predicted plus {margin:size} of safety margin, of {free:size} free now"
    "{then}.",
    "memory_learned": "; {runs:finished run} like it here moved the prediction by {ratio:+.1%}",
    "margin_learned": ", and the margin holds for {coverage:.0%} of runs",
    "price": "About {seconds:time} at {rate:,} credits an hour is {credits:credit}; the quote of {quote:,} covers "
    "{covered:time}, and only what is used is charged{then}.",
    "pace_learned": "; {runs:finished run} like it here took {ratio:.2f} times the time predicted for a step",
    # Device
    "float16": "{device} has no bfloat16: the base computes in float16, with adapters in float32 and a loss scale that "
    "follows the gradients, so that small ones are kept. A step whose gradient overflows is taken again at half the "
    "scale.",
    "float32": "{device}, without instructions for bfloat16: the base computes in float32, which is faster there and "
    "takes twice the memory.",
    "compiled": "Decoder layers are compiled with torch.compile, as you asked. Memory, time and price are those of the "
    "run without it; compiling takes a few minutes of device time at the start, which a long run earns back.",
    "liger": "Liger's kernels compute {what: and } on {device}; before the first step the run proves that its loss and "
    "gradient are the same with them, and goes on without one where they are not.",
    "liger_norms": "norms",
    "liger_rotary": "the rotary embedding",
    "liger_activation": "the MLP's activation",
    "dry_run": "The planner has no formula for {model_type}: its parameters were counted on the built model, and its "
    "memory read off training steps dry-run without weights.",
    # Data
    "template_asked": "Rows are rendered with the chat template '{name}', as asked for; it is published with the "
    "result.",
    "template_lacking": "Rows are rendered with the chat template '{name}', since the model has no chat template of "
    "its own; it is published with the result.",
    "overlap": "{rows:,} of {examples:,} validation examples are also in the training file (first: row {first}): the "
    "validation loss will look better than it is.",
    # Alternatives
    "the_plan": "the plan",
    "lacks_memory": "needs {missing:size} more than is free",
    "higher_rank_fits": "a higher rank fits",
    "usual_optimizer_fits": "the usual optimizer fits",
    "dearer": "{credits:,} credits more",
    "slower": "{seconds:time} slower",
    "fills_less": "no faster, and fills the device less well",
    "compresses_for_nothing": "costs the same and compresses more",
    "compresses_more": "compresses more than {method:method}, which fits",
    "too_little_data_for_it": "too little data for it: an adapter is cheaper and forgets less",
}
