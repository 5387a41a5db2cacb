"""Why a plan is what it is, and what every other run would have meant: as data, which planner/wording.py says."""

import math
from collections.abc import Sequence

from planner import constants as c
from planner.calibration import COVERAGE
from planner.memory.adapters import FACTORISED, adapted_rows, whole_parameters
from planner.memory.estimate import Correction
from planner.model.spec import ModelSpec
from planner.options import Priority, RequestedConfig
from planner.plans import Alternative
from planner.policy.candidates import LADDER, Candidate, Question, allowed_methods
from planner.policy.recipe import Length, choose_learning_rate, choose_rank, choose_targets
from planner.precision import FLOAT16, FLOAT32
from planner.reasons import Reason, reason
from planner.schedule import describe_schedule
from planner.setup import CheckpointSelection, Method, TrainingSetup
from planner.throughput import packed_rows

_SAME_RATE = 0.01  # of the usual rate: a difference that is only rounding
_HOT = 10  # times the usual rate: beyond what was ever best in published sweeps


def explain(
    question: Question, candidates: Sequence[Candidate], chosen: Candidate, length: Length
) -> tuple[Reason, ...]:
    """One reason for each step of the policy, in its order."""
    reasons = [length.reason, _method(question, candidates, chosen)]
    if chosen.setup.method is not Method.FULL:
        reasons += [_adapter(question, chosen), *describe_variant(question.spec, chosen.setup)]
    reasons += [
        _batch(question, candidates, chosen),
        _rate(question, chosen),
        _held_out(question, chosen),
        _memory(chosen),
        _price(chosen),
    ]
    if chosen.setup.dtype in (FLOAT16, FLOAT32):
        reasons.append(reason(chosen.setup.dtype, device=chosen.device.name))
    if chosen.setup.torch_compile:
        reasons.append(reason("compiled"))
    if what := _by_liger(question.spec, chosen.setup):
        reasons.append(reason("liger", what=what, device=chosen.device.name))
    if (patience := chosen.hyperparameters.early_stopping_patience) is not None:
        evaluations = reason("one_evaluation") if patience == 1 else reason("evaluations_in_a_row", patience=patience)
        reasons.append(reason("early_stopping", evaluations=(evaluations,)))
    if question.spec.is_introspected:
        reasons.append(reason("dry_run", model_type=question.spec.model_type))
    return tuple(reasons)


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


def _method(question: Question, candidates: Sequence[Candidate], chosen: Candidate) -> Reason:
    return reason("method", method=chosen.setup.method.value, because=_why_method(question, candidates, chosen))


def _why_method(question: Question, candidates: Sequence[Candidate], chosen: Candidate) -> tuple[Reason, ...]:
    requested, method, device = question.requested, chosen.setup.method, chosen.device.name
    if requested.method is not None:
        moot = reason("priority_is_moot", priority=requested.priority.value)
        return (reason("as_asked"), *((moot,) if requested.priority is Priority.QUALITY else ()))
    if requested.priority is Priority.ECONOMY:
        return (reason("cheapest", device=device),)
    because = []
    for other in LADDER[: LADDER.index(method)]:
        if other not in allowed_methods(question):
            continue
        if other is Method.FULL and requested.priority is Priority.AUTO and _is_small(question):
            tokens = question.statistics.trained_tokens
            because.append(
                reason("too_little_data", enough=c.FULL_FROM_TRAINED_TOKENS, tokens=tokens, method=method.value)
            )
            continue
        tried = [x for x in candidates if x.setup.method is other]
        if not tried:
            because.append(reason("not_in_float16", method=other.value, device=device))
            continue
        least = min(tried, key=lambda x: -x.headroom_bytes)
        because.append(
            reason(
                "does_not_fit",
                method=other.value,
                needed=least.memory.required_bytes,
                device=least.device.name,
                free=least.device.free_bytes,
            )
        )
    return tuple(because) or (reason("fits"),)


def _is_small(question: Question) -> bool:
    return question.statistics.trained_tokens < c.FULL_FROM_TRAINED_TOKENS


def _adapter(question: Question, chosen: Candidate) -> Reason:
    requested, rank = question.requested, chosen.setup.lora_rank or 0
    targets = choose_targets(requested)
    where = (
        reason("all_linear") if requested.lora_target_modules is None else reason("modules", names=", ".join(targets))
    )
    wanted = choose_rank(question.spec, question.statistics, targets)
    if requested.lora_rank is not None:
        then = reason("rank_asked")
    elif rank != wanted:
        then = reason("rank_fits", wanted=wanted, rank=rank)
    else:
        then = reason("rank_suits", tokens=question.statistics.trained_tokens)
    parameters = question.spec.lora_parameters(rank, targets)
    return reason("adapter", parameters=parameters, rank=rank, where=(where,), then=(then,))


def describe_variant(spec: ModelSpec, setup: TrainingSetup) -> list[Reason]:
    """A reason for each choice that makes an adapter another one than plain LoRA."""
    reasons, rank = [], setup.lora_rank or 0
    if setup.use_rslora:
        alpha = setup.lora_alpha or 0
        reasons.append(reason("rslora", scale=alpha / math.sqrt(rank or 1), alpha=alpha))
    if setup.use_dora:
        reasons.append(reason("dora", rows=adapted_rows(spec, setup)))
    if setup.init_lora_weights in FACTORISED:
        reasons.append(reason(f"starts_at_{setup.init_lora_weights}", rank=2 * rank))
    if setup.modules_to_save:
        tied = spec.tie_word_embeddings
        where = reason("tied_embedding") if tied else reason("modules", names=" and ".join(setup.modules_to_save))
        reasons.append(
            reason(
                "trained_whole",
                where=(where,),
                parameters=whole_parameters(spec, setup),
                dtype=setup.adapter_dtype or "float32",
            )
        )
    return reasons


def _batch(question: Question, candidates: Sequence[Candidate], chosen: Candidate) -> Reason:
    setup, asked = chosen.setup, question.requested.batch_size
    rows, times = setup.effective_batch_size, setup.gradient_accumulation_steps
    if setup.packing:
        each = question.statistics.examples / packed_rows(question.statistics, setup.max_length)
        start = reason("packed_rows_per_step", rows=rows, each=each)
    elif asked is not None and asked > rows:
        start = reason("batch_above_rows", asked=asked, rows=rows)
    else:
        start = reason("rows_per_step", rows=rows)
    return reason(
        "batch",
        start=(start,),
        micro=setup.per_device_train_batch_size,
        accumulated=(reason("accumulated", times=times),) if times > 1 else (),
        steps=chosen.speed.total_steps,
        epochs=chosen.hyperparameters.n_epochs,
        then=(_checkpointing(question, candidates, chosen),),
    )


def _checkpointing(question: Question, candidates: Sequence[Candidate], chosen: Candidate) -> Reason:
    if not chosen.setup.gradient_checkpointing:
        return reason("keeps_activations")
    if question.requested.gradient_checkpointing:
        return reason("recomputes_as_asked")
    method = chosen.setup.method
    plain = [x for x in candidates if x.setup.method is method and not x.setup.gradient_checkpointing]
    least = min(plain, key=lambda x: x.memory.required_bytes, default=None)
    if least is None or least.fits:
        return reason("recomputes_for_speed")
    return reason("recomputes_to_fit", needed=least.memory.required_bytes)


def _rate(question: Question, chosen: Candidate) -> Reason:
    usual = choose_learning_rate(question.spec, chosen.setup.method, RequestedConfig())
    kind = "usual_for_full" if chosen.setup.method is Method.FULL else "usual_for_adapters"
    where = (reason(kind, hidden=question.spec.hidden_size),)
    then: tuple[Reason, ...] = ()
    peak, times = where, chosen.hyperparameters.learning_rate / usual
    if abs(times - 1) > _SAME_RATE:
        how = "many_times_usual" if times >= _HOT else "times_usual"
        peak = (reason(how, times=times, usual=usual, where=where),)
        then = (reason("rate_too_hot"),) if times >= _HOT else (reason("rate_too_low"),) if times <= 1 / _HOT else ()
    schedule = describe_schedule(chosen.hyperparameters, chosen.speed.total_steps)
    return reason("rate", schedule=(schedule,), peak=peak, then=then)


def _held_out(question: Question, chosen: Candidate) -> Reason:
    """What is measured on, and whether that tells anything."""
    statistics, rows = question.statistics, chosen.hyperparameters.held_out_rows
    if statistics.validation_examples:
        rows = min(statistics.validation_examples, c.MOST_HELD_OUT)
    elif not rows:
        return reason("no_row_held_out")
    is_last = chosen.hyperparameters.checkpoint_selection is CheckpointSelection.LAST
    few = (reason("too_few_to_tell", telling=c.TELLING_ROWS),) if rows < c.TELLING_ROWS else ()
    then = (reason("last_step_published" if is_last else "best_step_published"),)
    if statistics.validation_examples:
        return reason("measured_on_file", rows=rows, few=few, then=then)
    are = (reason("one_is" if rows == 1 else "many_are"),)
    return reason("held_out", rows=rows, examples=statistics.examples, rows_are=are, few=few, then=then)


def _by_liger(spec: ModelSpec, setup: TrainingSetup) -> tuple[Reason, ...]:
    """What Liger's kernels do in this run."""
    fused = (
        (reason("liger_norms"), setup.fused_norms and spec.family.float32_norm_weight),
        (reason("liger_rotary"), setup.fused_rotary),
        (reason("liger_activation"), setup.fused_activation),
    )
    return tuple(part for part, is_fused in fused if is_fused)


def _memory(chosen: Candidate) -> Reason:
    memory, learned = chosen.memory, chosen.memory.correction
    then: tuple[Reason, ...] = ()
    if learned.runs and learned != Correction(runs=learned.runs):
        then = (reason("memory_learned", runs=learned.runs, ratio=learned.ratio - 1),)
        if learned.bound_share is not None:
            then = (*then, reason("margin_learned", coverage=COVERAGE))
    return reason(
        "memory",
        device=chosen.device.name,
        predicted=memory.device_bytes,
        margin=memory.bound_bytes,
        free=chosen.device.free_bytes,
        then=then,
    )


def _price(chosen: Candidate) -> Reason:
    quote, pace = chosen.quote, chosen.speed.pace
    return reason(
        "price",
        seconds=quote.predicted_seconds,
        rate=quote.credits_per_hour,
        credits=quote.predicted_credits,
        quote=quote.credits,
        covered=quote.billed_seconds,
        then=(reason("pace_learned", runs=pace.runs, ratio=pace.ratio),) if pace.ratio != 1 else (),
    )


def _why_not(question: Question, x: Candidate, chosen: Candidate) -> Reason:
    if x is chosen:
        return reason("the_plan")
    if not x.fits:
        return reason("lacks_memory", missing=-x.headroom_bytes)
    if x.setup.method is not chosen.setup.method:
        return _other_method(question, x, chosen)
    if (x.setup.lora_rank or 0) < (chosen.setup.lora_rank or 0):
        return reason("higher_rank_fits")
    if x.setup.optimizer != chosen.setup.optimizer:
        return reason("usual_optimizer_fits")
    if x.quote.credits > chosen.quote.credits:
        return reason("dearer", credits=x.quote.credits - chosen.quote.credits)
    if x.speed.seconds > chosen.speed.seconds * (1 + c.TIME_TOLERANCE):
        return reason("slower", seconds=x.speed.seconds - chosen.speed.seconds)
    return reason("fills_less")


def _other_method(question: Question, x: Candidate, chosen: Candidate) -> Reason:
    if question.requested.priority is Priority.ECONOMY:
        more = x.quote.credits - chosen.quote.credits
        return reason("dearer", credits=more) if more > 0 else reason("compresses_for_nothing")
    if LADDER.index(x.setup.method) > LADDER.index(chosen.setup.method):
        return reason("compresses_more", method=chosen.setup.method.value)
    return reason("too_little_data_for_it")
