"""Measuring the largest step before the first one is taken."""

from functools import partial

from worker.training.batches import longest_micro_batch
from worker.training.compiling import outlast_compiler
from worker.training.forward import score
from worker.training.memory import release
from worker.training.optimizer import build_optimizer, set_learning_rate
from worker.training.run import Run


def probe(current: Run) -> None:
    """The longest micro-batch once forward and backward, and one optimizer step of zeros: memory, and no trace.

    The step runs on a second optimizer with zero gradients and a zero rate, which changes no weight.
    """
    outlast_compiler(partial(_forward_and_backward, current), partial(_forget_gradients, current), current.reporter)
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


def _forward_and_backward(current: Run) -> None:
    batch = longest_micro_batch(current.data.training, current.request.setup, current.layout).to(current.loaded.device)
    loss, _ = score(current.loaded, batch, batch.trained_tokens / current.state.loss_scale.value)
    current.watch.check()
    loss.backward()


def _forget_gradients(current: Run) -> None:
    for _, parameter in current.loaded.parameters:
        parameter.grad = None
