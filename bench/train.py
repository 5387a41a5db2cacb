"""Non-padding tokens per second and final loss of our training loop against TRL's SFTTrainer, alternating.

Same model, rows, rank, effective batch, schedule, clipping and number of steps; every run in a fresh process. TRL runs
with its defaults (gradient checkpointing, padded batches), without checkpointing, and without either. Both count what
the model reads, padding excluded. The loss is that of the trained model on rows that neither saw, by the same code for
both: plain transformers, one row at a time.

    .venv/bin/python bench/train.py MODEL_DIRECTORY [--data FILE] [--rounds 2] [--steps 12]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "core" / "datasets" / "samples"
BATCH, RANK, RATE, MAX_LENGTH, SEED = 8, 16, 2e-4, 1024, 0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONTENDERS: dict[str, dict[str, object]] = {  # and what of TRL's settings differs from its defaults
    "tunewright": {},
    "trl-defaults": {"max_length": MAX_LENGTH},
    "trl-padding-free": {"activation_checkpointing": False, "padding_free": True, "max_length": None},
    "trl-no-recomputing": {"activation_checkpointing": False, "max_length": MAX_LENGTH},
}
WARM_STEPS = 2  # not timed: kernels are compiled in them
HELD_OUT_ROWS = 16

Conversations = list[list[dict[str, str]]]


def main() -> None:
    """Run the contenders in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = options.data or next(iter(sorted(SAMPLES.glob("*.jsonl"))), None)
    if data is None:
        data = write_rows(Path(tempfile.mkdtemp()) / "rows.jsonl")
    if options.one:
        asked = (options.model, *split(data), options.steps)
        result = train_ours(*asked) if options.one == "tunewright" else train_trl(*asked, CONTENDERS[options.one])
        print(json.dumps(result))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        for name in CONTENDERS:
            result = in_fresh_process(name, options.model, data, options.steps)
            results[name].append(result)
            print(
                f"round {number + 1}  {name:16}  {result['tokens_per_second']:7.1f} tokens/s  "
                f"held-out loss {result['loss']:.4f}"
            )
    speeds = {name: statistics.median(run["tokens_per_second"] for run in runs) for name, runs in results.items()}
    for name in CONTENDERS:
        losses = statistics.median(run["loss"] for run in results[name])
        ratio = speeds["tunewright"] / speeds[name]
        print(f"{name:16}  {speeds[name]:7.1f} tokens/s (median)  held-out loss {losses:.4f}  ours is {ratio:.2f}x")


def in_fresh_process(name: str, model: Path, data: Path, steps: int) -> dict[str, float]:
    """One contender's run in a process of its own, under the allocator settings that both share."""
    kept = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
    environment = {**os.environ, "GLIBC_TUNABLES": kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, str(model), "--data", str(data), "--steps", str(steps), "--one", name]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    result: dict[str, float] = json.loads(finished.stdout.strip().rsplit("\n", 1)[-1])
    return result


def split(data: Path) -> tuple[Path, Conversations]:
    """A file of the rows to train on, and the conversations that are kept from both."""
    rows = data.read_text(encoding="utf-8").splitlines()
    training = Path(tempfile.mkdtemp()) / "training.jsonl"
    training.write_text("\n".join(rows[:-HELD_OUT_ROWS]) + "\n", encoding="utf-8")
    return training, [json.loads(row)["messages"] for row in rows[-HELD_OUT_ROWS:]]


def held_out_loss(model: Any, directory: Path, conversations: Conversations) -> float:
    """Mean loss of the answers' tokens under a plain transformers model."""
    import torch
    from torch.nn import functional
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model.eval()
    total, count = 0.0, 0
    for messages in conversations:
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        ids = torch.tensor([tokenizer.apply_chat_template(messages, return_dict=False)])
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        total += float(functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum"))
        count += len(logits)
    return total / count


def train_ours(model: Path, data: Path, held_out: Conversations, steps: int) -> dict[str, float]:
    """Our loop's own functions, without evaluation, samples and checkpoints, which TRL does not do either."""
    sys.path.insert(0, str(ROOT))
    import torch

    from core.datasets.encoding import load_encoder
    from core.datasets.examples import DataFormat, DataKind
    from core.datasets.reading import read_examples
    from planner.schedule import learning_rate
    from planner.setup import Hyperparameters, Method, TrainingSetup
    from worker.training.data.batches import Layout
    from worker.training.data.tokenized import TokenizedSet
    from worker.training.libraries import quiet
    from worker.training.loop.optimizer import build_optimizer, set_learning_rate
    from worker.training.memory import keep_freed_pages
    from worker.training.model.forward import score
    from worker.training.model.gradients import clip_gradients, gradient_norm
    from worker.training.model.loading import load_for_training, plain_attention
    from worker.training.objectives.supervised.steps import epoch_steps, micro_batches, step_tokens

    quiet()
    keep_freed_pages()
    encoder = load_encoder(model)
    chat = DataFormat("messages", DataKind.CHAT, {"messages": "messages"})
    rows = TokenizedSet.of(encoder.encode_batch(read_examples(data, chat), MAX_LENGTH))
    setup = TrainingSetup(
        Method.LORA,
        lora_rank=RANK,
        lora_alpha=2 * RANK,
        lora_target_modules=TARGETS,
        adapter_dtype="float32",
        per_device_train_batch_size=BATCH,
        max_length=MAX_LENGTH,
    )
    hyperparameters = Hyperparameters(n_epochs=1, learning_rate=RATE)
    loaded = load_for_training(model, setup, SEED, torch.device("cpu"))
    optimizer = build_optimizer(loaded.parameters, setup, hyperparameters)
    order = [step for epoch in range(steps) for step in epoch_steps(rows, setup, SEED, epoch)][:steps]
    seconds, counted = 0.0, 0
    for number, step in enumerate(order):
        started = time.monotonic()
        tokens, trained = step_tokens(rows, step)
        for batch in micro_batches(rows, step, setup, Layout.PADDING_FREE):
            loss, _ = score(loaded, batch, trained)
            loss.backward()
        clip_gradients(loaded.parameters, hyperparameters.max_grad_norm, gradient_norm(loaded.parameters))
        set_learning_rate(optimizer, learning_rate(number, steps, hyperparameters))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number >= WARM_STEPS:
            seconds += time.monotonic() - started
            counted += tokens
    with plain_attention(loaded):
        return {"tokens_per_second": counted / seconds, "loss": held_out_loss(loaded.model, model, held_out)}


def train_trl(
    model: Path, data: Path, held_out: Conversations, steps: int, settings: Mapping[str, object]
) -> dict[str, float]:
    """TRL's SFTTrainer with PEFT on the same rows, loss on assistant turns."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerState
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds, self.started = 0.0, 0.0

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.started = time.monotonic()

        def on_step_end(self, _: object, state: TrainerState, *__: object, **___: object) -> None:
            if state.global_step > WARM_STEPS:
                self.seconds += time.monotonic() - self.started

    rows = [json.loads(line)["messages"] for line in data.read_text(encoding="utf-8").splitlines()]
    pairs = [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in rows]
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=-(-3 * steps // 100),
        max_steps=steps,
        completion_only_loss=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=True,
        seed=SEED,
        disable_tqdm=True,
        include_num_input_tokens_seen="non_padding",
        **settings,
    )
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    tokens = log[-1]["num_tokens"] - log[WARM_STEPS - 1]["num_tokens"]  # by the trainer's own count, without padding
    return {"tokens_per_second": tokens / clock.seconds, "loss": held_out_loss(trainer.model, model, held_out)}


def write_rows(path: Path) -> Path:
    """Support conversations of varying length, for a checkout without the sample data set."""
    with path.open("w", encoding="utf-8") as file:
        for row in range(160):
            answer = " ".join(
                f"Step {n}: check part {(row * 7 + n) % 23} and tell us what you see." for n in range(1 + row % 5)
            )
            messages = [
                {"role": "user", "content": f"My device number {row} stopped working this morning. What can I do?"},
                {"role": "assistant", "content": f"We are sorry to hear that. {answer} Thank you for your patience."},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


if __name__ == "__main__":
    main()
