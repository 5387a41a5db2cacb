"""What is held out is a function of the file: not of the seed, the length, the model or the order of anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.datasets.encoding import load_encoder
from core.errors import InvalidDatasetError
from planner.setup import Method
from tests.unit.training.runs import request_for, setup_for, write_conversations
from worker.training.objectives.supervised.rows import RunData, load_data

Load = Callable[..., RunData]


@pytest.fixture
def load(tiny_model: Path, tmp_path: Path) -> Load:
    def loaded(data: Path, *, held_out: int, max_length: int = 256, **changes: Any) -> RunData:
        setup = setup_for(Method.LORA, max_length=max_length)
        request = request_for(
            tiny_model, data, tmp_path / "run", setup, hyperparameters={"held_out_rows": held_out}, **changes
        )
        return load_data(request, load_encoder(tiny_model))

    return loaded


def rows_of(data: RunData) -> set[int]:
    return {example.row for example in data.held_out_examples}


def test_every_job_on_a_file_holds_out_the_same_rows(load: Load, conversations: Path) -> None:
    drawn = load(conversations, held_out=6)
    assert len(rows_of(drawn)) == 6
    assert rows_of(load(conversations, held_out=6, seed=8)) == rows_of(drawn)
    assert load(conversations, held_out=6, seed=8).held_out.sha256() == drawn.held_out.sha256()
    assert rows_of(load(conversations, held_out=3)) < rows_of(drawn) < rows_of(load(conversations, held_out=9))
    assert len(load(conversations, held_out=0).held_out) == 0


def test_rows_that_a_length_leaves_nothing_of_change_no_other(load: Load, conversations: Path) -> None:
    whole, cut = load(conversations, held_out=12), load(conversations, held_out=12, max_length=40)
    assert rows_of(cut) <= rows_of(whole)
    assert whole.held_out.sha256() != cut.held_out.sha256(), "other tokens are scored: the losses do not compare"


def test_another_file_holds_out_others(load: Load, tmp_path: Path) -> None:
    files = [write_conversations(tmp_path / f"{rows}.jsonl", rows) for rows in (24, 25, 26)]
    drawn = [rows_of(load(file, held_out=6)) for file in files]
    assert drawn[0] != drawn[1] != drawn[2]


def test_a_validation_file_is_evaluated_whole(load: Load, conversations: Path, tmp_path: Path) -> None:
    validation = write_conversations(tmp_path / "validation.jsonl", 9)
    data = load(conversations, held_out=0, validation_path=str(validation))
    assert (len(data.training), len(data.held_out)) == (24, 9)


def test_one_row_is_always_left_to_train(load: Load, conversations: Path) -> None:
    assert len(load(conversations, held_out=100).training) == 1


def test_the_only_rows_that_train_are_not_all_held_out(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "unequal.jsonl"
    with path.open("w") as file:
        for row in range(8):  # the trained turns of all but one lie behind the first 40 tokens
            question = "glow?" if row == 5 else "glow " * 60
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"lamp {row}"}]
            file.write(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(InvalidDatasetError, match="held out") as refusal:
        load(path, held_out=7, max_length=40)
    assert refusal.value.param == "validation_split"
