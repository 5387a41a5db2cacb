"""The loss curve is that of a plain loop: whole logits, padded batches, torch's own optimizer."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM

from core.datasets.encoding import load_encoder
from core.datasets.reading import read_examples
from planner.schedule import learning_rate
from planner.setup import Hyperparameters, Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import CHAT, request_for, run_child, setup_for
from worker.protocol import MetricsReport
from worker.training.objectives.supervised.rows import load_data
from worker.training.objectives.supervised.steps import epoch_steps

SEED, RATE, EPOCHS = 7, 5e-3, 2


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("method", [Method.LORA, Method.FULL])
def test_loss_curve_equals_a_plain_loop(tmp_path: Path, conversations: Path, method: Method) -> None:
    model = make_tiny_model(tmp_path / "model", dtype="float32")
    setup = setup_for(method, dtype="float32", gradient_checkpointing=True)
    request = request_for(model, conversations, tmp_path / "run", setup, learning_rate=RATE)
    finished = run_child(request)
    steps = [report for report in finished.of(MetricsReport) if report.train_loss is not None]
    data = load_data(request, load_encoder(model))
    expected = plain_losses(model, method, request.hyperparameters, data.training, setup)
    assert [report.train_loss for report in steps] == pytest.approx([loss for loss, _ in expected], abs=1e-4)
    assert [report.grad_norm for report in steps] == pytest.approx([norm for _, norm in expected], rel=1e-3)


def plain_losses(model, method, hyperparameters: Hyperparameters, data, setup):  # type: ignore[no-untyped-def]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if method is Method.LORA:
        torch.manual_seed(SEED)
        config = LoraConfig(r=setup.lora_rank, lora_alpha=setup.lora_alpha, target_modules="all-linear")
        network = get_peft_model(network, config)
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    order = [step for epoch in range(EPOCHS) for step in epoch_steps(data, setup, SEED, epoch)]
    scheduler = LambdaLR(optimizer, lambda step: learning_rate(step, len(order), hyperparameters) / RATE)
    results = []
    for step in order:
        ids = [torch.tensor(data.tokens_of(e).tolist()) for row in step for e in row]
        kept = [torch.tensor(data.completion_mask_of(e).tolist()) for row in step for e in row]
        labels = [torch.where(mask, token, -100) for token, mask in zip(ids, kept, strict=True)]
        inputs = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
        targets = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        logits = network(input_ids=inputs, attention_mask=mask).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, hyperparameters.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        results.append((float(loss.detach()), float(norm)))
    return results


def test_what_is_trained_is_what_inspection_shows(tmp_path: Path, conversations: Path, tiny_model: Path) -> None:
    encoder = load_encoder(tiny_model)
    data = load_data(request_for(tiny_model, conversations, tmp_path, setup_for(Method.LORA)), encoder)
    assert len(data.training) + len(data.held_out) == 24
    example = data.held_out_examples[0]
    assert encoder.encode(example, 256).input_ids == tuple(data.held_out.tokens_of(0).tolist())
    ends = [int(token) for token in data.training.tokens_of(0)[data.training.completion_mask_of(0)]]
    assert encoder.eos_token_id in ends, "the end of every answer is trained"
    assert {example.row for example in data.held_out_examples}.isdisjoint(
        {n for n, _ in enumerate(read_examples(conversations, CHAT))} - set(range(25))
    )
