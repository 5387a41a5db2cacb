"""Measuring the largest step before the first one is taken."""

from functools import partial

import torch

from worker.training.loop.optimizer import build_optimizer, set_learning_rate
from worker.training.loop.run import Run
from worker.training.memory import release
from worker.training.model.compiling import outlast_compiler
from worker.training.model.gradients import NoGradientError, learning, require_gradients


def probe(current: Run) -> None:
    """The longest micro-batch once forward and backward, and one optimizer step of zeros: memory, and no trace.

    The step runs on a second optimizer with zero gradients and a zero rate, which changes no weight.
    """
    forget = partial(_forget_gradients, current)
    wanted = _learning_uncompiled(current) if current.compilation.is_on else frozenset[str]()
    forget()
    work = partial(_forward_and_backward, current, wanted)
    outlast_compiler(current.compilation, work, forget, current.reporter)
    for _, parameter in current.loaded.parameters:
        if parameter.grad is not None:
            parameter.grad.zero_()
    scratch = build_optimizer(current.loaded.parameters, current.request.setup, current.request.hyperparameters)
    set_learning_rate(scratch, 0.0)
    scratch.step()
    current.watch.check()
    scratch.zero_grad(set_to_none=True)
    del scratch
    release()


def _learning_uncompiled(current: Run) -> frozenset[str]:
    """What gets a gradient when nothing is compiled."""
    with torch.compiler.set_stance("force_eager"):
        _forward_and_backward(current, frozenset())
    return learning(current.loaded.parameters)


def _forward_and_backward(current: Run, wanted: frozenset[str]) -> None:
    """Raises NoGradientError where a trained tensor gets no gradient, or one of `wanted` nothing but zeros."""
    batch = current.objective.longest_micro_batch().to(current.loaded.device)
    loss = current.objective.loss(current.loaded, batch, batch.scored / current.state.loss_scale.value)
    current.watch.check()
    loss.value.backward()
    require_gradients(current.loaded.parameters)
    if current.compilation.is_on and (silent := wanted - learning(current.loaded.parameters)):
        raise NoGradientError(f"{len(silent)} trained tensors get a gradient of zeros, {min(silent)} among them")


def _forget_gradients(current: Run) -> None:
    for _, parameter in current.loaded.parameters:
        parameter.grad = None
