"""Tokens per second, model FLOPs utilisation and peak memory of LoRA and QLoRA steps on a GPU, against TRL and Unsloth.

Every contender trains an adapter of the same rank on the same random weights in the shape of a catalogue model, on the
same packed rows, in a fresh process: our loop, also with compiled layers; TRL's SFTTrainer with its own packing and
flash attention where that is installed; Unsloth's patched model in the same trainer where that is. Utilisation is
4 x parameters x tokens per second over the device's bf16 rate (a frozen weight costs its forward and its input's
gradient), recomputation not counted.

    .venv/bin/python bench/gpu_train.py [--model llama-3.1-8b] [--length 4096] [--rows 4] [--steps 10]
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.datasets.examples import EncodedExample  # noqa: E402
from planner.catalogue import find_model  # noqa: E402
from planner.devices import Device, read_devices  # noqa: E402
from planner.model_spec import ModelSpec  # noqa: E402
from planner.setup import VARLEN_FLASH, Hyperparameters, Method, Quantization, TrainingSetup  # noqa: E402
from planner.throughput import device_rates  # noqa: E402

WARM_STEPS = 3  # not timed: kernels are chosen and the allocator fills in them
RANK, RATE, SEED = 16, 2e-4, 0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHORTEST = 64  # tokens of an example; the longest is a row
NO_GPU = 3  # exit code
GIB = 1 << 30


@dataclass(frozen=True)
class Task:
    """What every contender does."""

    model: str
    method: str
    length: int  # tokens of a packed row
    rows: int  # per step
    steps: int
    device: str

    @property
    def setup(self) -> TrainingSetup:
        """As the policy would plan it, with checkpointing."""
        method = Method(self.method)
        return TrainingSetup(
            method,
            Quantization.NF4_DOUBLE_QUANT if method is Method.QLORA else None,
            lora_rank=RANK,
            lora_alpha=2 * RANK,
            lora_target_modules=TARGETS,
            adapter_dtype="float32",
            per_device_train_batch_size=self.rows,
            max_length=self.length,
            packing=True,
            attn_implementation=VARLEN_FLASH,
            gradient_checkpointing=True,
        )

    @property
    def config(self) -> dict[str, Any]:
        """The model's `config.json`."""
        entry = find_model(self.model)
        if entry is None:
            raise SystemExit(f"{self.model} is not in the catalogue.")
        return dict(entry.config)


@dataclass(frozen=True)
class Figures:
    """What one contender reached."""

    tokens_per_second: float  # padding excluded
    peak_bytes: int  # allocated


def main() -> int:
    """Run every contender that is installed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b", help="an id of the catalogue")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="timed ones")
    parser.add_argument("--device", default="cuda:0", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(CONTENDERS[options.one[0]](Task(**json.loads(options.one[1]))))))
        return 0
    kind = options.device.partition(":")[0]
    device = next((device for device in read_devices() if device.kind == kind), None)
    if device is None:
        print("There is no CUDA device on this machine: nothing was measured.", file=sys.stderr)
        return NO_GPU
    print(f"{options.model}, {options.rows} x {options.length} packed, rank {RANK}, on {device.name}\n")
    print("| method | contender | tokens/s | utilisation | peak, GiB | ours is |\n|---|---|---|---|---|---|")
    for method in (Method.LORA, Method.QLORA):
        task = Task(options.model, method, options.length, options.rows, options.steps, options.device)
        for line in compare(task, device):
            print(line, flush=True)
    return 0


def compare(task: Task, device: Device) -> Iterator[str]:
    """A row of the table for each contender, ours first."""
    parameters = ModelSpec.from_config(task.config).active_parameters
    ours: Figures | None = None
    for name in CONTENDERS:
        if name == "unsloth" and importlib.util.find_spec("unsloth") is None:
            yield f"| {task.method} | {name} | not installed | | | |"
            continue
        figures = in_fresh_process(name, task)
        ours = ours or figures
        utilisation = 4 * parameters * figures.tokens_per_second / device_rates(device).flops
        yield (
            f"| {task.method} | {name} | {figures.tokens_per_second:,.0f} | {utilisation:.1%} | "
            f"{figures.peak_bytes / GIB:.2f} | {ours.tokens_per_second / figures.tokens_per_second:.2f}x |"
        )


def in_fresh_process(name: str, task: Task) -> Figures:
    """One contender's run."""
    command = [sys.executable, __file__, "--one", name, json.dumps(asdict(task))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return Figures(**json.loads(done.stdout.strip().rsplit("\n", 1)[-1]))


def examples(task: Task) -> list[EncodedExample]:
    """Random tokens in examples from short to a whole row, log-uniform: more than enough for all steps."""
    import numpy as np

    random = np.random.default_rng(SEED)
    wanted = (WARM_STEPS + task.steps + 1) * task.rows * task.length
    found, total = list[EncodedExample](), 0
    while total < wanted:
        size = int(np.exp(random.uniform(np.log(SHORTEST), np.log(task.length))))
        ids = random.integers(1000, task.config["vocab_size"] - 1000, size)
        found.append(EncodedExample(len(found), tuple(ids.tolist()), (True,) * size))
        total += size
    return found


def train_ours(task: Task, *, compiled: bool = False) -> Figures:
    """Our loop's own functions. Layers are compiled in the warm steps."""
    import torch

    from bench.random_weights import load_random
    from worker.training.batches import TokenizedSet, choose_layout, epoch_steps, micro_batches, step_tokens
    from worker.training.compiling import compile_layers
    from worker.training.forward import score
    from worker.training.libraries import quiet
    from worker.training.optimizer import build_optimizer, clip_gradients, gradient_norm

    quiet()
    setup, device = task.setup, torch.device(task.device)
    loaded = load_random(task.config, setup, device)
    cache = tempfile.TemporaryDirectory()  # gone with the process
    if compiled:
        compile_layers(loaded, Path(cache.name))
    layout = choose_layout(cuts_attention=loaded.cuts_attention)
    rows = TokenizedSet.of(examples(task))
    hyperparameters = Hyperparameters(n_epochs=1, learning_rate=RATE)
    optimizer = build_optimizer(loaded.parameters, setup, hyperparameters)
    clock = Clock(device)
    for step in epoch_steps(rows, setup, SEED, 0)[: WARM_STEPS + task.steps]:
        clock.start()
        tokens, trained = step_tokens(rows, step)
        for batch in micro_batches(rows, step, setup, layout):
            loss, _ = score(loaded, batch.to(device), trained)
            loss.backward()
        clip_gradients(loaded.parameters, hyperparameters.max_grad_norm, gradient_norm(loaded.parameters))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.stop(tokens)
    return clock.figures()


def train_trl(task: Task) -> Figures:
    """TRL's SFTTrainer around plain PEFT, packed best-fit, with flash attention where it is installed."""
    import torch
    from peft import get_peft_model
    from transformers.utils import is_flash_attn_2_available

    from bench.random_weights import random_base
    from worker.training.loading import lora_config

    base = random_base(task.config, task.setup, torch.device(task.device))
    if is_flash_attn_2_available():
        base.set_attn_implementation("flash_attention_2")
    return in_trainer(task, get_peft_model(base, lora_config(base, task.setup)))


def train_unsloth(task: Task) -> Figures:
    """The same trainer around Unsloth's model, which it loads from weights on disk."""
    from unsloth import FastLanguageModel  # isort: skip  # first: it patches the others
    import torch

    from bench.random_weights import random_base

    with tempfile.TemporaryDirectory() as directory:
        plain = TrainingSetup(Method.LORA)
        random_base(task.config, plain, torch.device("cpu")).save_pretrained(directory)
        model, _ = FastLanguageModel.from_pretrained(
            directory, max_seq_length=task.length, load_in_4bit=task.method == Method.QLORA
        )
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), use_gradient_checkpointing="unsloth"
    )
    return in_trainer(task, model)


CONTENDERS: dict[str, Callable[[Task], Figures]] = {
    "tunewright": train_ours,
    "tunewright, torch_compile": partial(train_ours, compiled=True),
    "trl": train_trl,
    "unsloth": train_unsloth,
}


def in_trainer(task: Task, model: Any) -> Figures:
    """`model` in SFTTrainer on the same examples."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock = Clock(torch.device(task.device))

    class Timing(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            clock.start()

        def on_step_end(self, *_: object, **__: object) -> None:
            clock.stop(task.rows * task.length)

    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=task.rows,
        max_steps=WARM_STEPS + task.steps,
        learning_rate=RATE,
        max_length=task.length,
        packing=True,
        activation_checkpointing=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        bf16=True,
        seed=SEED,
        disable_tqdm=True,
        use_cpu=task.device == "cpu",
    )
    dataset = Dataset.from_list(
        [{"input_ids": list(row.input_ids), "labels": list(row.input_ids)} for row in examples(task)]
    )
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[Timing()]
    )
    packed = sum(len(row["input_ids"]) for row in trainer.train_dataset) / len(trainer.train_dataset)
    trainer.train()
    return clock.figures(packed / task.length)


class Clock:
    """Times whole steps behind the warm ones, the device's work included."""

    def __init__(self, device: Any) -> None:
        self.device, self.steps, self.seconds, self.tokens, self.started = device, 0, 0.0, 0, 0.0

    def start(self) -> None:
        """A step begins."""
        self._settle()
        self.started = time.monotonic()

    def stop(self, tokens: int) -> None:
        """It is done."""
        self._settle()
        self.steps += 1
        if self.steps > WARM_STEPS:
            self.seconds += time.monotonic() - self.started
            self.tokens += tokens

    def figures(self, filled: float = 1.0) -> Figures:
        """Of all timed steps; `filled`: the share of the counted tokens that is no padding."""
        import psutil
        import torch

        on_cpu = self.device.type == "cpu"
        peak = psutil.Process().memory_info().rss if on_cpu else torch.cuda.max_memory_allocated(self.device)
        return Figures(filled * self.tokens / self.seconds, int(peak))

    def _settle(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


if __name__ == "__main__":
    raise SystemExit(main())
