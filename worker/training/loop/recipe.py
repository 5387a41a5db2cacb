"""The recipe, top to bottom: load, resume, probe, evaluate, sample, train, sample again, export, verify."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from core.datasets.encoding import load_encoder
from core.errors import TrainingError
from core.jobs.evaluation import Evaluation
from core.jobs.verdict import Curves, Verdict, judge
from planner.constants import PROOF_TOKENS
from planner.objectives import TRAIN_LOSS, VALID_LOSS
from planner.precision import FLOAT16
from planner.schedule import is_evaluated_after
from planner.setup import Method
from worker.protocol import HeldOutReport, Phase, ResultReport, RunRequest
from worker.training.data.tokenized import TokenizedSet
from worker.training.export.answers import answer_length, answered_rows, evaluation_of
from worker.training.export.export import Exported, export, pack
from worker.training.export.model_card import model_card
from worker.training.export.sampling import Answer, answer_prompts, choose_prompts
from worker.training.export.verification import VerificationTask, Verifier, compare, fixed_examples
from worker.training.loop.checkpoints import RunState
from worker.training.loop.loss_scale import LossScale, unscaled_norm
from worker.training.loop.optimizer import build_optimizer, set_learning_rate
from worker.training.loop.probing import probe
from worker.training.loop.resuming import find_checkpoint, fingerprint, publishable, restore, save
from worker.training.loop.run import Run
from worker.training.memory import MemoryWatch, release
from worker.training.metrics import MetricsRow
from worker.training.model.compiling import Compilation, compile_layers, outlast_compiler
from worker.training.model.flash import proved_attention
from worker.training.model.fused import proved_kernels
from worker.training.model.gradients import NoGradientError, clip_gradients, require_gradients
from worker.training.model.loading import load_for_training
from worker.training.objectives.likelihood import likelihood
from worker.training.objectives.objective import Loss
from worker.training.objectives.registry import objective_of
from worker.training.reporting import Reporter
from worker.training.stopping import StopRequested, StopSignal

MAX_SKIPPED_IN_A_ROW = 5
MAX_STILL_IN_A_ROW = 2
_CHECKPOINT_SHARE = 0.1  # of the job's training time: the longest between two checkpoints of a short job
_CHECKPOINT_COST = 0.05  # of the training time: what checkpoints inside an epoch may take at most
PROOF_ROWS = 8  # that prove an export


def run(request: RunRequest, reporter: Reporter, stop: StopSignal, verifier: Verifier) -> ResultReport:
    """Train as requested. Raises TunewrightError, StopRequested after a checkpoint, or the device's out of memory."""
    reporter.enter(Phase.LOADING)
    with stop.interruptible():
        current = load(request, reporter, stop)
    checkpoint = find_checkpoint(current)
    prompts = choose_prompts(
        current.objective.held_out_examples, current.encoder, answered_rows(request), request.setup.max_length
    )
    length = answer_length(request)
    if not current.is_trained:
        reporter.enter(Phase.PROBING)
        with stop.interruptible():
            probe(current)
        reporter.send(current.watch.report("probe", as_planned=current.setup == request.setup))
    if checkpoint is not None:  # after the probe, whose optimizer has a state of its own
        restore(current, checkpoint)
        del checkpoint
    evaluate_if_due(current)
    if current.state.answers_before is None:
        reporter.enter(Phase.SAMPLING)
        answers = answer_prompts(current.loaded, prompts, current.encoder, stop, length)
        current.state = replace(current.state, answers_before=answers)

    started = time.monotonic()
    if not current.is_trained:
        reporter.enter(Phase.TRAINING)
    train(current)
    train_seconds = time.monotonic() - started
    with stop.interruptible():
        published = publishable(current)

    answers_after: tuple[Answer, ...] = ()
    if prompts:
        reporter.enter(Phase.SAMPLING)
        answers_after = answer_prompts(current.loaded, prompts, current.encoder, stop, length)
    reporter.enter(Phase.EXPORTING)
    with stop.interruptible():
        before = current.state.answers_before or ()
        rows = [row for row in current.state.rows if row.step <= published]
        evaluation = evaluation_of(request, rows, prompts, before, answers_after)
        exported = export(current.loaded, request, current.state.rows, prompts, before, answers_after)
    reporter.enter(Phase.VERIFYING)
    with stop.interruptible():
        elsewhere = verify(current, exported, verifier)
        if evaluation is not None:
            evaluation = replace(evaluation, valid_loss_on_16bit_base=elsewhere)
        pack(exported, model_card(request, current.state.rows, published, evaluation))
    return summarize(current, exported, published, train_seconds, evaluation)


def load(request: RunRequest, reporter: Reporter, stop: StopSignal) -> Run:
    """Objective with its rows, model and optimizer as they are before the first step."""
    device = torch.device(request.device)
    watch = MemoryWatch(device, request.memory_limit_bytes)
    directory = Path(request.base_model_path)
    encoder = load_encoder(directory, request.chat_template)
    objective = objective_of(request, encoder)
    for note in objective.notes:
        reporter.warn(note)
    if held_out := objective.held_out:
        reporter.send(HeldOutReport(held_out.rows, held_out.scored_tokens, held_out.sha256))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    setup = proved_attention(request.setup, config, device, reporter)
    loaded = load_for_training(directory, setup, request.seed, device)
    setup = proved_kernels(loaded, setup, reporter)
    watch.check()
    if setup.torch_compile:
        compile_layers(loaded, Path(request.run_directory) / "compiled")
    objective.prepare(loaded)
    return Run(
        request=request,
        reporter=reporter,
        stop=stop,
        watch=watch,
        encoder=encoder,
        objective=objective,
        loaded=loaded,
        optimizer=build_optimizer(loaded.parameters, request.setup, request.hyperparameters),
        state=RunState(fingerprint=fingerprint(request, objective), loss_scale=LossScale.of(setup.dtype)),
        setup=setup,
        compilation=Compilation(is_on=setup.torch_compile),
    )


def train(current: Run) -> None:
    """All steps that are left. Leaves a checkpoint behind however it ends, short of a crash."""
    epoch = -1
    steps: Sequence[Any] = ()
    saved_at = time.monotonic()
    try:
        while True:
            evaluate_if_due(current)
            if _checkpoint_is_due(current, time.monotonic() - saved_at):
                save(current)
                saved_at = time.monotonic()
            current.stop.check()
            if current.is_trained:
                return
            here, place = divmod(current.state.step, current.objective.steps_per_epoch)
            if epoch != here:
                epoch, steps = here, current.objective.epoch(here)
            optimizer_step(current, steps[place])
    except StopRequested:
        save(current)
        raise


def optimizer_step(current: Run, step: Any) -> None:
    """One step over all its micro-batches: the loss a mean over all that is scored, clipped, and recorded."""
    started = time.monotonic()
    request, loaded, number = current.request, current.loaded, current.state.step
    size = current.objective.size_of(step)
    taken = scaled_gradients(current, step, size.scored)
    rate = current.rate_of(number)
    is_finite = math.isfinite(taken.loss) and math.isfinite(taken.norm)
    if is_finite:
        clip_gradients(loaded.parameters, request.hyperparameters.max_grad_norm, taken.norm_on_device)
        set_learning_rate(current.optimizer, rate)
        current.optimizer.step()
    current.optimizer.zero_grad(set_to_none=True)
    current.watch.settle()
    row = MetricsRow(number + 1)
    if is_finite:
        others = current.objective.metrics(taken.sums, size.scored)
        row = MetricsRow(number + 1, {TRAIN_LOSS: taken.loss, **others}, learning_rate=rate)
    current.state = replace(
        current.state,
        step=number + 1,
        tokens=current.state.tokens + size.tokens,
        skipped_in_a_row=0 if is_finite else current.state.skipped_in_a_row + 1,
        loss_scale=current.state.loss_scale.after_step() if is_finite else current.state.loss_scale,
        rows=(*current.state.rows, row),
    )
    seconds = time.monotonic() - started
    current.steps_taken += 1
    current.step_seconds += seconds
    current.report_metrics(row.metrics, taken.norm if is_finite else None, size.tokens / seconds)
    _refuse_divergence(current)
    _refuse_standstill(current, loss=taken.loss, norm=taken.norm)


@dataclass(frozen=True)
class Gradients:
    """What the gradients of a step came to."""

    loss: float
    sums: Sequence[float]  # that the objective's metrics are made of
    norm: float
    norm_on_device: torch.Tensor


def scaled_gradients(current: Run, step: Any, scored: int) -> Gradients:
    """The gradients of a step, taken again at half the loss's scale as long as they overflow and it can be halved."""
    undo = partial(current.optimizer.zero_grad, set_to_none=True)
    while True:
        try:
            work = partial(accumulate, current, step, scored)
            total = outlast_compiler(current.compilation, work, undo, current.reporter)
        except StopRequested:
            undo()
            raise
        norm = unscaled_norm(current.loaded.parameters, current.state.loss_scale)
        # The one point where the host waits for the device.
        loss, norm_here, *sums = torch.cat([total.value[None], norm.float()[None], total.sums]).tolist()
        if math.isfinite(norm_here) or not math.isfinite(loss) or not current.state.loss_scale.can_shrink:
            return Gradients(loss, sums, norm_here, norm)
        undo()
        current.state = replace(current.state, loss_scale=current.state.loss_scale.halved())


def accumulate(current: Run, step: Any, scored: int) -> Loss:
    """The gradients of a step, summed over its micro-batches, as its loss and the sums of its metrics are.

    Raises StopRequested behind a micro-batch, and NoGradientError.
    """
    loaded, seed = current.loaded, _step_seed(current.request.seed, current.state.step)
    torch.manual_seed(seed)  # dropout is a function of the step, not of what came before
    scale = current.state.loss_scale.value
    value, sums = torch.zeros((), device=loaded.device), torch.zeros((), device=loaded.device)
    for batch in current.objective.micro_batches(step):
        loss = current.objective.loss(loaded, batch.to(loaded.device), scored / scale)
        current.watch.check()
        loss.value.backward()
        value += loss.value.detach() / scale
        sums = sums + loss.sums
        current.stop.check()
    require_gradients(loaded.parameters)
    return Loss(value, sums)


def summarize(
    current: Run, exported: Exported, published: int, train_seconds: float, evaluation: Evaluation | None
) -> ResultReport:
    """The last word of a run that went well; losses up to the step that is published."""
    rows = [row for row in current.state.rows if row.step <= published]
    trained = [row.train_loss for row in rows if row.train_loss is not None]
    evaluated = [row.valid_loss for row in rows if row.valid_loss is not None]
    root = Path(current.request.run_directory)
    return ResultReport(
        files={name: str(path.relative_to(root)) for name, path in exported.files.items()},
        processed_tokens=current.state.tokens,
        steps=current.state.step,
        published_step=published,
        train_seconds=train_seconds,
        step_seconds=current.step_seconds / current.steps_taken if current.steps_taken else None,
        checkpoints=current.saving.count,
        checkpoint_seconds=current.saving.seconds,
        final_train_loss=trained[-1] if trained else None,
        initial_valid_loss=evaluated[0] if evaluated else None,
        final_valid_loss=evaluated[-1] if evaluated else None,
        evaluation=evaluation,
        verdict=verdict_of(current, published),
    )


def verdict_of(current: Run, published: int) -> Verdict:
    """What all losses of the run say, those behind the published step too."""
    rows = current.state.rows
    return judge(
        Curves(
            training=[row.train_loss for row in rows if row.train_loss is not None],
            evaluations=[(row.step, row.valid_loss) for row in rows if row.valid_loss is not None],
            held_out_rows=0 if (held_out := current.objective.held_out) is None else held_out.rows,
            published_step=published,
        )
    )


def evaluate_if_due(current: Run) -> None:
    """Score the held-out examples before the first step, at chosen epoch ends and at the end, each once."""
    state, rows = current.state, current.state.rows
    if current.objective.held_out is None or not _is_evaluation_step(current):
        return
    if rows and rows[-1].step == state.step and rows[-1].valid_loss is not None:
        return
    phase = current.reporter.phase
    current.reporter.enter(Phase.EVALUATING)
    metrics = current.objective.evaluate(current.loaded, current.watch, current.stop)
    if metrics is not None:
        if not math.isfinite(metrics[VALID_LOSS]):
            raise _divergence(current, f"The loss on the held-out examples after step {state.step} is not finite.")
        last = rows[-1] if rows else MetricsRow(0)
        current.state = replace(state, rows=(*rows[:-1], last.with_evaluation(metrics)))
        current.report_metrics(metrics)
    if phase is Phase.TRAINING and not current.is_trained:
        current.reporter.enter(Phase.TRAINING)


def verify(current: Run, exported: Exported, verifier: Verifier) -> float | None:
    """Reload the export elsewhere and compare its loss with the trained model's, which is gone after that.

    Returns the loss over the held-out rows on the 16-bit base of an adapter that was trained on a 4-bit one; None for
    others, and where that base does not fit. Raises TrainingError.
    """
    examples = fixed_examples(current.objective.proof_rows, PROOF_ROWS, PROOF_TOKENS)
    request = current.request
    trained = likelihood(current.loaded, TokenizedSet.of(examples), 1, current.watch, current.stop)
    assert trained is not None, "every example that is verified scores a token"
    task = VerificationTask(
        base_directory=request.base_model_path,
        export_directory=str(exported.directory),
        setup=request.setup,
        device=request.device,
        threads=torch.get_num_threads(),
        examples=tuple((example.input_ids, example.completion_mask) for example in examples),
        on_16bit_base=tuple(current.objective.scored_held_out) if request.setup.method is Method.QLORA else (),
    )
    del current.loaded, current.optimizer  # the device may not hold the model twice
    release()
    # Before the other process loads its copy: where the driver does not tell the two apart, all of it would be ours.
    current.reporter.send(current.watch.report("end", as_planned=current.is_as_planned))
    compare(trained.loss, verifier.loss(task))
    return verifier.loss_on_16bit_base() if task.on_16bit_base else None


def _is_evaluation_step(current: Run) -> bool:
    epochs, remainder = divmod(current.state.step, current.objective.steps_per_epoch)
    return remainder == 0 and is_evaluated_after(epochs, current.request.hyperparameters.n_epochs)


def _checkpoint_is_due(current: Run, seconds: float) -> bool:
    """At every epoch's end, and within an epoch by time; never between steps that were skipped."""
    if current.state.skipped_in_a_row:
        return False
    if current.state.step % current.objective.steps_per_epoch == 0:
        return True
    longest = current.request.checkpoint_interval_seconds
    if longest == 0:
        return True
    interval = min(longest, _CHECKPOINT_SHARE * current.expected_train_seconds)
    return seconds >= max(interval, current.saving.last_seconds / _CHECKPOINT_COST)


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


def _refuse_divergence(current: Run) -> None:
    skipped = current.state.skipped_in_a_row
    if skipped:
        current.reporter.warn(f"The loss or gradient of step {current.state.step} is not finite; the step is skipped.")
    if skipped >= MAX_SKIPPED_IN_A_ROW:
        message = f"The loss or gradient was not finite in {skipped} steps in a row, up to step {current.state.step}."
        raise _divergence(current, message)


def _refuse_standstill(current: Run, *, loss: float, norm: float) -> None:
    """A gradient of exactly zero is right where every token is predicted for sure, and a fault anywhere else."""
    current.still_steps = current.still_steps + 1 if norm == 0 and loss != 0 else 0
    if current.still_steps >= MAX_STILL_IN_A_ROW:
        raise NoGradientError(
            f"The gradient of all trained weights was exactly 0 in {current.still_steps} steps in a row, up to step "
            f"{current.state.step}, at a loss of {loss:.4f}: nothing is learned. Please report this with the model and "
            "the method."
        )


def _divergence(current: Run, message: str) -> TrainingError:
    rate = current.request.hyperparameters.learning_rate
    advice = f"Lower the learning rate (it was {rate:g}) or check the data."
    if current.request.setup.dtype == FLOAT16:
        advice += (
            " The run computed in float16, whose numbers end at 65,504; a model that needs more trains on a GPU with "
            "bfloat16 (compute capability 8.0 or more: RTX 30, A10, L4 and later)."
        )
    return TrainingError(f"{message} {advice}", code="loss_diverged")
