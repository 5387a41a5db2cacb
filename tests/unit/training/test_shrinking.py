"""Evaluation and samples that run out of memory go on in smaller batches, with the same outcome."""

from pathlib import Path

import pytest
import torch

from core.datasets.encoding import load_encoder
from core.datasets.reading import read_examples
from planner.setup import Method
from tests.unit.training.runs import CHAT, setup_for
from worker.training.data.batches import Layout, MicroBatch, collate
from worker.training.data.packing import Row
from worker.training.data.tokenized import TokenizedSet
from worker.training.export import sampling
from worker.training.export.sampling import Answer, Prompt, answer_prompts, choose_prompts
from worker.training.memory import MemoryLimitError, MemoryWatch
from worker.training.model.loading import LoadedModel, load_for_training
from worker.training.objectives import likelihood as evaluation
from worker.training.objectives.likelihood import likelihood
from worker.training.stopping import StopSignal

CPU = torch.device("cpu")
MAX_LENGTH = 256


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    """The tiny model with a fresh adapter."""
    return load_for_training(tiny_model, setup_for(Method.LORA), 0, CPU)


def out_of_memory() -> MemoryLimitError:
    return MemoryLimitError("too much for this test")


def test_evaluation_shrinks_its_own_batch(
    loaded: LoadedModel, tiny_model: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(tiny_model)
    data = TokenizedSet.of(encoder.encode_batch(read_examples(conversations, CHAT), MAX_LENGTH))
    watch, stop = MemoryWatch(CPU, None), StopSignal()
    expected = likelihood(loaded, data, 2, watch, stop)
    sizes: list[int] = []

    def collate_a_few(data: TokenizedSet, rows: list[Row], layout: Layout) -> MicroBatch:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise out_of_memory()
        return collate(data, rows, layout)

    monkeypatch.setattr(evaluation, "collate", collate_a_few)
    assert likelihood(loaded, data, 8, watch, stop) == expected
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[3:]) == {2}


def test_evaluation_gives_up_where_one_row_is_too_much(
    loaded: LoadedModel, tiny_model: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TokenizedSet.of(load_encoder(tiny_model).encode_batch(read_examples(conversations, CHAT), MAX_LENGTH))

    def refuse(*_: object) -> MicroBatch:
        raise out_of_memory()

    monkeypatch.setattr(evaluation, "collate", refuse)
    with pytest.raises(MemoryLimitError):
        likelihood(loaded, data, 8, MemoryWatch(CPU, None), StopSignal())


def test_samples_are_answered_in_smaller_batches(
    loaded: LoadedModel, tiny_model: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, stop = load_encoder(tiny_model), StopSignal()
    prompts = choose_prompts(read_examples(conversations, CHAT), encoder, 5, MAX_LENGTH)
    one_by_one = tuple(answer for prompt in prompts for answer in answer_prompts(loaded, [prompt], encoder, stop, 24))
    answer_batch, sizes = sampling._answer_batch, list[int]()

    def answer_one(loaded: LoadedModel, prompts: list[Prompt], *rest: object) -> tuple[Answer, ...]:
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise out_of_memory()
        return answer_batch(loaded, prompts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sampling, "_answer_batch", answer_one)
    assert answer_prompts(loaded, prompts, encoder, stop, 24) == one_by_one
    assert sizes == [5, 2, 1, 1, 3, 1, 2, 1, 1]
