"""Proof that an export gives what was trained: reloaded by a process that never held the trained model.

The process is forked when the child starts, before any model, thread or CUDA context exists, and waits on a pipe: it
has every import and no state. It loads the way a user does (plain transformers and PEFT, logits whole, torch's cross
entropy, one example at a time), so it also checks the trainer's own attention, LoRA and loss.
"""

import os
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from core.datasets.examples import EncodedExample
from core.errors import TrainingError
from planner.devices import read_cpu
from planner.setup import Method, TrainingSetup
from worker.training.data.tokenized import TokenizedSet
from worker.training.memory import is_out_of_memory, release
from worker.training.model.loading import attach_adapter, load_base
from worker.training.model.modules_to_save import train_in_base_dtype

# Two right ways to the same loss differ by the rounding of bfloat16 activations: measured below 0.5% over families,
# methods and devices. A forgotten adapter, a wrong scale or a wrong template is off by far more.
RELATIVE_TOLERANCE = 0.02
ABSOLUTE_TOLERANCE = 0.01  # nats


Scored = tuple[tuple[int, ...], tuple[bool, ...]]  # token ids, and which of them are scored


@dataclass(frozen=True)
class VerificationTask:
    """What to load and the examples to score: token ids, and for each token whether it is scored."""

    base_directory: str
    export_directory: str
    setup: TrainingSetup
    device: str
    threads: int
    examples: tuple[Scored, ...]
    on_16bit_base: tuple[Scored, ...] = ()  # to score on the base in 16 bits too, where that fits


class VerifierDiedError(Exception):
    """Raised when the process that proves the export is gone: of the export that says nothing, so it is a crash."""


class Verifier:
    """The waiting process, as its parent sees it."""

    def __init__(self, report_fd: int) -> None:
        """Fork it. `report_fd` is closed there, so that the supervisor sees the pipe's end when the parent exits."""
        ours, theirs = Pipe()
        self.process_id = os.fork()
        if self.process_id == 0:
            ours.close()
            os.close(report_fd)
            _serve(theirs)
        theirs.close()
        self._connection = ours

    def loss(self, task: VerificationTask) -> float:
        """Mean loss of the reloaded export. Raises TrainingError where it cannot be loaded, and VerifierDiedError."""
        try:
            self._connection.send(task)
            answer: float | str = self._connection.recv()
        except (EOFError, OSError):
            raise VerifierDiedError("The process that reloads the export died, likely for lack of memory.") from None
        if isinstance(answer, str):
            raise TrainingError(f"The export could not be loaded: {answer}", code="export_verification_failed")
        return answer

    def loss_on_16bit_base(self) -> float | None:
        """Mean loss on the 16-bit base, after `loss`; None where that did not fit."""
        try:
            answer: float | None = self._connection.recv()
        except EOFError:  # ended for want of memory: the proof stands
            return None
        return answer

    def close(self) -> None:
        """End the process and wait for it."""
        self._connection.close()
        os.kill(self.process_id, signal.SIGKILL)
        os.waitpid(self.process_id, 0)


def compare(trained_loss: float, reloaded_loss: float) -> None:
    """Raises TrainingError where the two losses differ by more than 0.01 nats and 2%."""
    difference = abs(trained_loss - reloaded_loss)
    if not difference <= ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * trained_loss:
        raise TrainingError(
            f"The reloaded export has a loss of {reloaded_loss:.4f} on the same examples where the trained model has "
            f"{trained_loss:.4f}. It is not published; please report this with the job's id.",
            code="export_verification_failed",
        )


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        task: VerificationTask = connection.recv()
        try:
            connection.send(reloaded_loss(task))
            if task.on_16bit_base:
                connection.send(loss_on_16bit_base(task))
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
            traceback.print_exc()
            connection.send(f"{type(error).__name__}: {error}")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone, and with it the question
    finally:
        os._exit(0)


def reloaded_loss(task: VerificationTask) -> float:
    """Load the export as a user would and score the examples, summed over tokens and divided by their number."""
    torch.set_num_threads(task.threads)
    device = torch.device(task.device)
    return _mean_loss(_load(task, device).eval(), task.examples, device)


def loss_on_16bit_base(task: VerificationTask) -> float | None:
    """The same of an adapter that was trained on a 4-bit base, on the base as its users mostly load it."""
    release()
    device = torch.device(task.device)
    if not _fits(Path(task.base_directory), device):
        return None
    setup = replace(task.setup, method=Method.LORA, quantization=None)
    try:
        model = _load(replace(task, setup=setup), device).eval()
        return _mean_loss(model, task.on_16bit_base, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _fits(directory: Path, device: torch.device) -> bool:
    """Whether the weights fit with a fifth of their size for what runs them."""
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else read_cpu().free_bytes
    return 1.2 * size <= free


def _mean_loss(model: nn.Module, examples: Sequence[Scored], device: torch.device) -> float:
    total, scored = 0.0, 0
    with torch.inference_mode():
        for token_ids, trained in examples:
            ids = torch.tensor([token_ids], device=device)
            chosen = torch.tensor(trained[1:], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1][chosen].float()  # [scored, vocabulary]
            total += float(functional.cross_entropy(logits, ids[0, 1:][chosen], reduction="sum"))
            scored += int(chosen.sum())
    return total / scored


def _load(task: VerificationTask, device: torch.device) -> nn.Module:
    export, setup = Path(task.export_directory), task.setup
    if setup.method is Method.FULL:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            export, dtype=setup.dtype, device_map={"": device}, attn_implementation=setup.unpacked_attention
        )
        return model
    base = load_base(Path(task.base_directory), setup, device, setup.unpacked_attention)
    config = LoraConfig.from_pretrained(str(export))
    if not (config.target_parameters and setup.method is Method.QLORA):
        return PeftModel.from_pretrained(base, export)
    # 4-bit experts exist only in this trainer: PEFT on its own would nest their wrappers in another order.
    config.inference_mode = False
    model = attach_adapter(base, config, torch.float32)
    train_in_base_dtype(model, getattr(torch, setup.dtype))
    set_peft_model_state_dict(model, load_file(export / "adapter_model.safetensors"))
    return model


def fixed_examples(data: TokenizedSet, count: int, max_tokens: int) -> list[EncodedExample]:
    """The first `count` examples that score a token within `max_tokens`, cut there; else one whole."""
    chosen: list[EncodedExample] = []
    for number in range(len(data)):
        trained = data.completion_mask_of(number)[:max_tokens]
        if len(chosen) < count and trained[1:].any():
            ids = tuple(data.tokens_of(number)[:max_tokens].tolist())
            chosen.append(EncodedExample(number, ids, tuple(trained.tolist())))
    if not chosen:
        chosen.append(EncodedExample(0, tuple(data.tokens_of(0).tolist()), tuple(data.completion_mask_of(0).tolist())))
    return chosen
