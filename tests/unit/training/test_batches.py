"""Order, packing and accounting of what is trained."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.datasets.examples import EncodedExample
from planner.setup import Method, TrainingSetup
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import setup_for
from tests.unit.training.varlen import reference_flash
from worker.training.data.batches import Layout, choose_layout, collate
from worker.training.data.tokenized import TokenizedSet
from worker.training.model.forward import score
from worker.training.model.loading import load_for_training
from worker.training.objectives.supervised.steps import (
    epoch_steps,
    longest_micro_batch,
    micro_batches,
    step_tokens,
    steps_per_epoch,
)

lengths = st.lists(st.integers(2, 40), min_size=1, max_size=40)


def examples(sizes: list[int]) -> TokenizedSet:
    random = np.random.default_rng(0)
    return TokenizedSet.of(
        EncodedExample(
            n, tuple(random.integers(3, 300, size).tolist()), (False,) * (size // 3) + (True,) * (size - size // 3)
        )
        for n, size in enumerate(sizes)
    )


@given(lengths, st.booleans(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_every_example_is_trained_once_an_epoch(
    sizes: list[int], packing: bool, micro: int, accumulation: int, epoch: int
) -> None:
    data = examples(sizes)
    setup = TrainingSetup(
        Method.FULL,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_length=40,
        packing=packing,
    )
    steps = epoch_steps(data, setup, seed=3, epoch=epoch)
    assert Counter(e for step in steps for row in step for e in row) == Counter(range(len(sizes)))
    assert len(steps) == steps_per_epoch(data, setup)
    assert all(len(step) <= setup.effective_batch_size for step in steps)
    assert all(sum(sizes[e] for e in row) <= 40 for step in steps for row in step)
    smaller = replace(setup, per_device_train_batch_size=1, gradient_accumulation_steps=micro * accumulation)
    assert epoch_steps(data, smaller, seed=3, epoch=epoch) == steps, "a smaller micro-batch trains the same steps"


@given(lengths, st.integers(1, 5), st.sampled_from(Layout))
def test_counts_are_exact(sizes: list[int], micro: int, layout: Layout) -> None:
    data = examples(sizes)
    setup = TrainingSetup(Method.FULL, per_device_train_batch_size=micro, gradient_accumulation_steps=2)
    for step in epoch_steps(data, setup, seed=0, epoch=0):
        batches = list(micro_batches(data, step, setup, layout))
        tokens, trained = step_tokens(data, step)
        assert sum(batch.tokens for batch in batches) == tokens == sum(sizes[e] for row in step for e in row)
        assert sum(batch.scored for batch in batches) == trained
        biggest = longest_micro_batch(data, setup, layout)
        assert all(batch.tokens <= biggest.tokens for batch in batches)


def test_order_changes_with_seed_and_epoch() -> None:
    data, setup = examples([5] * 30), TrainingSetup(Method.FULL)
    orders = {tuple(epoch_steps(data, setup, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


@pytest.mark.parametrize(
    ("family", "attention", "sizes"),
    [
        ("llama", "cut into examples", (7, 30, 12, 90)),
        ("llama", "cut into examples", (7, 30, 12, 700)),  # long rows go through the fused kernel
        ("llama", "sdpa", (7, 30, 12, 90)),  # CUDA's: transformers builds a block-diagonal mask from the positions
        ("llama", "eager", (7, 30, 12, 90)),
        ("llama", "flash", (7, 30, 12, 90)),  # the layout that CUDA's kernel is handed
        ("mistral", "flash", (7, 30, 12, 90)),
        ("mistral", "cut into examples", (7, 30, 12, 90)),  # all of its layers have a sliding window
        ("mistral", "cut into examples", (7, 30, 12, 700)),
        ("mistral", "sdpa", (7, 30, 12, 90)),
        ("mistral", "eager", (7, 30, 12, 90)),
        ("gemma2", "cut into examples", (7, 30, 12, 700)),  # every other one, and capped scores
        ("gemma2", "eager", (7, 30, 12, 90)),
    ],
)
def test_a_packed_row_gives_each_example_the_loss_it_has_alone(
    tmp_path: Path, family: str, attention: str, sizes: tuple[int, ...]
) -> None:
    model = make_tiny_model(tmp_path / "model", family=family, dtype="float32", sliding_window=16)
    setup = setup_for(Method.FULL, dtype="float32", attn_implementation="eager" if family == "gemma2" else "sdpa")
    loaded, layout = load_for_training(model, setup, 0, torch.device("cpu")), Layout.PADDING_FREE
    if attention not in ("cut into examples", "flash"):
        loaded.causal_model.set_attn_implementation(attention)
        loaded, layout = replace(loaded, is_varlen=False), Layout.PADDED
    loaded.model.eval()
    data = examples(list(sizes))
    for number in range(len(sizes)):
        with torch.no_grad():
            alone = score(loaded, collate(data, [(number,)], layout), 1.0)
        with torch.no_grad(), reference_flash(*[torch.float32] if attention == "flash" else []) as calls:
            packed = score(loaded, collate(trained_only(data, number), [(1, 0, 3), (2,)], layout), 1.0)
        layers = loaded.causal_model.config.num_hidden_layers
        assert calls == ([len(sizes) + 1] * layers if attention == "flash" else []), "and one example of padding"
        assert float(packed[0]) == pytest.approx(float(alone[0]), rel=1e-5)
        assert int(packed[1]) == int(alone[1])


def trained_only(data: TokenizedSet, number: int) -> TokenizedSet:
    """The same rows, of which one example alone is scored."""
    trained = np.zeros_like(data.completion_mask)
    trained[data.offsets[number] : data.offsets[number + 1]] = data.completion_mask_of(number)
    return replace(data, completion_mask=trained)


def test_padding_does_not_change_a_loss(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", dtype="float32")
    setup = setup_for(Method.FULL, dtype="float32")
    loaded = load_for_training(model, setup, 0, torch.device("cpu"))
    loaded.causal_model.set_attn_implementation("sdpa")
    loaded = replace(loaded, is_varlen=False)
    data = examples([7, 30])
    with torch.no_grad():
        alone = [float(score(loaded, collate(data, [(n,)], Layout.PADDED), 1.0)[0]) for n in range(2)]
        together = float(score(loaded, collate(data, [(0,), (1,)], Layout.PADDED), 1.0)[0])
    assert together == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize(
    ("family", "layout"), [("llama", Layout.PADDING_FREE), ("opt", Layout.PADDING_FREE), ("stablelm", Layout.PADDED)]
)
def test_rows_are_flat_where_the_model_hands_the_cuts_down(tmp_path: Path, family: str, layout: Layout) -> None:
    """stablelm drops arguments that it does not know: its rows are padded, and its losses the same."""
    model = make_tiny_model(tmp_path / family, family=family)
    setup = setup_for(Method.LORA)
    loaded = load_for_training(model, setup, 0, torch.device("cpu"))
    assert choose_layout(is_varlen=loaded.is_varlen) is layout
    loaded.model.eval()  # OPT has dropout of its own
    data = examples([7, 30])
    with torch.no_grad():
        alone = [float(score(loaded, collate(data, [(n,)], layout), 1.0)[0]) for n in range(2)]
        together = float(score(loaded, collate(data, [(0,), (1,)], layout), 1.0)[0])
    assert together == pytest.approx(sum(alone), rel=2e-3)
