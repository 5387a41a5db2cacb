"""Same model, rows, order, seed and hyperparameters: the loss curve of TRL's SFTTrainer, step by step.

TRL pads, accumulates, normalises and clips by itself. Tokens and masks are given to it, for it also trains what
templates put behind the end of a turn, and which nothing ever generates; and so is the schedule, for its own starts
with a step at rate zero.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from core.datasets.encoding import load_encoder
from planner.schedule import learning_rate
from planner.setup import Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import request_for, run_child, setup_for
from worker.protocol import ErrorReport, MetricsReport, RunRequest
from worker.training.data.tokenized import TokenizedSet
from worker.training.objectives.supervised.rows import load_data
from worker.training.objectives.supervised.steps import epoch_steps

RATE, EPOCHS = 5e-3, 2


@pytest.mark.filterwarnings("ignore")  # of the libraries that TRL calls
@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("method", [Method.LORA, Method.FULL])
def test_loss_curve_equals_trls(tmp_path: Path, conversations: Path, method: Method) -> None:
    model = make_tiny_model(tmp_path / "model", dtype="float32")
    request = request_for(
        model,
        conversations,
        tmp_path / "run",
        setup_for(method, dtype="float32"),
        learning_rate=RATE,
        hyperparameters={"n_epochs": EPOCHS, "held_out_rows": 0, "weight_decay": 0.01},
    )
    finished = run_child(request)
    assert finished.of(ErrorReport) == []
    ours = [report for report in finished.of(MetricsReport) if report.train_loss is not None]
    theirs = train_with_trl(request, load_data(request, load_encoder(model)).training, tmp_path / "trl")
    assert [report.train_loss for report in ours] == pytest.approx([log["loss"] for log in theirs], abs=1e-3)
    assert [report.grad_norm for report in ours] == pytest.approx([log["grad_norm"] for log in theirs], rel=1e-3)
    assert [report.learning_rate for report in ours] == pytest.approx([log["learning_rate"] for log in theirs])
    assert ours[-1].processed_tokens == theirs[-1]["num_tokens"]


def train_with_trl(request: RunRequest, rows: TokenizedSet, directory: Path) -> list[dict[str, float]]:
    """What SFTTrainer logs of each optimizer step."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    setup, hyperparameters = request.setup, request.hyperparameters
    steps = [step for epoch in range(EPOCHS) for step in epoch_steps(rows, setup, request.seed, epoch)]
    order = [example for step in steps for (example,) in step]
    dataset = Dataset.from_list([labelled(rows, example) for example in order])
    model = AutoModelForCausalLM.from_pretrained(request.base_model_path, dtype=torch.float32)
    if setup.method is not Method.FULL:
        torch.manual_seed(request.seed)
        config = LoraConfig(r=setup.lora_rank, lora_alpha=setup.lora_alpha, target_modules="all-linear")
        model = get_peft_model(model, config)
    arguments = SFTConfig(
        output_dir=str(directory),
        num_train_epochs=1,
        per_device_train_batch_size=setup.per_device_train_batch_size,
        gradient_accumulation_steps=setup.gradient_accumulation_steps,
        train_sampling_strategy="sequential",
        learning_rate=hyperparameters.learning_rate,
        weight_decay=hyperparameters.weight_decay,
        max_grad_norm=hyperparameters.max_grad_norm,
        max_length=setup.max_length,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        seed=request.seed,
        disable_tqdm=True,
        include_num_input_tokens_seen="non_padding",
    )

    def share_of_peak(step: int) -> float:
        return learning_rate(step, len(steps), hyperparameters) / hyperparameters.learning_rate

    class Scheduled(SFTTrainer):  # type: ignore[misc]  # TRL has no types
        def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
            assert num_training_steps == len(steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share_of_peak)
            return self.lr_scheduler

    trainer = Scheduled(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(request.base_model_path),
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def labelled(rows: TokenizedSet, example: int) -> dict[str, list[int]]:
    """One example as transformers' trainers take it."""
    ids, trained = rows.tokens_of(example), rows.completion_mask_of(example)
    return {"input_ids": ids.tolist(), "labels": np.where(trained, ids, -100).tolist()}
