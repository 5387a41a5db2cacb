"""Cross entropy of the output projection without its logits: projected, scored and differentiated chunk by chunk.

Full logits cost 8-14 bytes x vocabulary per token and are the largest tensor of a step. Here one chunk of them lives
at a time; its gradient is formed at once (softmax minus one-hot, cross entropy being the last operation) and reduced
to gradients of the hidden states and, where trained, of the projection.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from planner.memory.losses import chunk_rows


@dataclass(frozen=True)
class LogitTransform:
    """What a family does to its logits: `softcap * tanh(multiplier * z / softcap)` (Gemma caps; Granite divides)."""

    multiplier: float = 1.0
    softcap: float | None = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The transformed logits, differentiably."""
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def apply_(self, logits: torch.Tensor) -> torch.Tensor:
        """The same in their place, without a derivative."""
        if self.multiplier != 1.0:
            logits *= self.multiplier
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


def linear_cross_entropy(
    hidden: torch.Tensor,
    head: nn.Module,
    labels: torch.Tensor,
    normaliser: float,
    transform: LogitTransform,
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log likelihood divided by `normaliser`, and the number of tokens predicted right.

    hidden [tokens, hidden], labels [tokens]: only positions whose next token is trained. `normaliser` is the number of
    trained tokens of the whole optimizer step, so that gradients of its micro-batches add up to those of the mean.
    Both results are scalars on the device. A head whose weights are in another dtype is run in that of `hidden`. One
    that is not a plain linear layer (with an adapter) is run as it is, and run again in backward.
    """
    if type(head) is not nn.Linear:
        return _through_module(hidden, head, labels, normaliser, transform, chunk_tokens)
    rows = chunk_tokens or chunk_rows(head.weight.shape[0], on_cuda=runs_on_cuda(head.weight))
    weight: torch.Tensor = head.weight
    bias: torch.Tensor | None = head.bias
    if not torch.is_grad_enabled():  # autograd would ask for the gradients of trained weights even so
        weight, bias = weight.detach(), bias if bias is None else bias.detach()
    if weight.dtype != hidden.dtype:
        weight, bias = weight.to(hidden.dtype), bias if bias is None else bias.to(hidden.dtype)
    loss, correct = _LinearCrossEntropy.apply(hidden, weight, bias, labels, 1.0 / normaliser, transform, rows)
    return loss, correct


def runs_on_cuda(weight: torch.Tensor) -> bool:
    """Whether the loss takes the chunks of a GPU. A dry run for CUDA answers for its stand-ins."""
    return weight.is_cuda


def _score(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    transform: LogitTransform,
    differentiated: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Summed loss, number of right predictions and, if asked for, the gradient of the transformed logits' input but for
    `transform.multiplier`, in float32 [rows, vocabulary].

    Few passes over the chunk: the softmax's largest value gives both the prediction and, with its logit, the
    log-sum-exp (log p = z - lse), and the gradient is formed in place of the softmax. The 16-bit projection is made and
    dropped here: a caller's would live as long as the call wherever torch's compiler evaluates Python's frames.
    """
    logits = functional.linear(hidden, weight, bias).float()
    gradient = torch.softmax(transform.apply_(logits), dim=-1)
    largest, predicted = gradient.max(dim=-1)
    of_targets, of_predicted = logits.gather(1, torch.stack([targets, predicted], dim=1)).unbind(1)
    loss = (of_predicted - largest.log() - of_targets).sum()
    correct = (predicted == targets).sum()
    if not differentiated:
        return loss, correct, None
    gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
    if transform.softcap is not None:
        # The tanh is recovered from the capped logits: d(cap tanh(z / cap)) / dz = 1 - (logits / cap)^2.
        gradient *= (logits / transform.softcap).square_().neg_().add_(1.0)
    return loss, correct, gradient


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        scale: float,
        transform: LogitTransform,
        rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        needs_bias = bias is not None and ctx.needs_input_grad[2]
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight) if needs_weight else None
        bias_gradient = torch.zeros_like(bias) if bias is not None and needs_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        factor = scale * transform.multiplier
        for start in range(0, hidden.shape[0], rows):
            piece, targets = hidden[start : start + rows], labels[start : start + rows]
            differentiated = needs_hidden or needs_weight or needs_bias
            piece_loss, hits, gradient = _score(piece, weight, bias, targets, transform, differentiated)
            loss += piece_loss
            correct += hits
            if gradient is None:
                continue
            if weight.dtype == torch.float16:  # has no room for what is only scaled later
                gradient *= factor
            narrow = gradient.to(weight.dtype)
            if bias_gradient is not None:
                bias_gradient += gradient.sum(dim=0).to(bias_gradient.dtype)
            del gradient
            if hidden_gradient is not None:
                torch.mm(narrow, weight, out=hidden_gradient[start : start + rows])
            if weight_gradient is not None:
                weight_gradient.addmm_(narrow.t(), piece)
            del narrow
        if weight.dtype != torch.float16:  # once over the results instead of over every logit
            for result in (hidden_gradient, weight_gradient, bias_gradient):
                if result is not None:
                    result *= factor
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.mark_non_differentiable(correct)
        return loss * scale, correct

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _correct: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = [None if saved is None else saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors]
        return *scaled, None, None, None, None


def _through_module(
    hidden: torch.Tensor,
    head: nn.Module,
    labels: torch.Tensor,
    normaliser: float,
    transform: LogitTransform,
    chunk_tokens: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = head.get_parameter("base_layer.weight")
    rows = chunk_tokens or chunk_rows(weight.shape[0], on_cuda=runs_on_cuda(weight))

    def score(piece: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = transform.apply(head(piece).float())
        return functional.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(dim=-1) == targets).sum()

    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    for piece, targets in zip(hidden.split(rows), labels.split(rows), strict=True):
        piece_loss, piece_correct = checkpoint(score, piece, targets, use_reentrant=False)
        loss = loss + piece_loss
        correct = correct + piece_correct
    return loss / normaliser, correct
