"""Answers to held-out prompts before and after: whether they stop, and whether they are right."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from core.datasets.encoding import load_encoder
from core.datasets.examples import DataFormat, DataKind
from core.datasets.final_answers import ExactMatch, Extract
from core.datasets.reading import read_examples
from core.plans.service import PlanRequest
from planner.setup import Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import request_for, run_child, setup_here
from worker.protocol import ErrorReport, MessageReport, PhaseReport, ResultReport, RunRequest
from worker.training.export.answers import answer_length, answered_rows

pytestmark = pytest.mark.usefixtures("fork_server")
QUESTIONS = DataFormat(
    "question_answer", DataKind.COMPLETION, {"question": "question", "answer": "answer", "reference": "number"}
)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template, whose only end is <|endoftext|>."""
    directory = make_tiny_model(tmp_path_factory.mktemp("models") / "base")
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        path = directory / name
        settings = json.loads(path.read_text())
        settings.pop("chat_template", None)
        settings |= {"eos_token": "<|endoftext|>"} if name.startswith("tokenizer") else {"eos_token_id": 0}
        path.write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions that all have the same answer, which is quickly learned, and the number in a column of its own."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"question": f"Lamps in box {i}?", "answer": "Count.\n#### 1,234", "number": 1234.0} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_model_that_learned_is_right_and_stops(base_model: Path, sums: Path, tmp_path: Path) -> None:
    request = request_for(
        base_model,
        sums,
        tmp_path / "run",
        setup_here(Method.FULL),
        learning_rate=5e-3,
        data_format=QUESTIONS,
        chat_template="zephyr",
        exact_match=ExactMatch(Extract.AFTER_HASHES, "number", rows=5, max_new_tokens=24),
        hyperparameters={"n_epochs": 8},
    )
    finished = run_child(request)
    assert finished.of(ErrorReport) == []
    (result,) = finished.of(ResultReport)
    scores = result.evaluation
    assert scores is not None
    assert scores.answers == 5
    assert (scores.before.exact_match, scores.after.exact_match) == (0.0, 1.0)
    assert (scores.before.stopped_rate, scores.after.stopped_rate) == (0.0, 1.0)
    assert (scores.before.valid_loss, scores.after.valid_loss) == (result.initial_valid_loss, result.final_valid_loss)

    root = Path(request.run_directory)
    assert list(result.files) == ["model.zip", "metrics.csv", "samples.json", "plan.json", "exact_match.json"]
    compared = json.loads((root / result.files["exact_match.json"]).read_text())
    assert len(compared) == 5
    assert {row["expected"] for row in compared} == {"1234.0"}
    assert all(row["after"]["final_answer"] == "1234" and row["after"]["is_match"] for row in compared)
    assert not any(row["before"]["is_match"] for row in compared)
    assert len(json.loads((root / result.files["samples.json"]).read_text())) == request.sample_count

    with zipfile.ZipFile(root / result.files["model.zip"]) as packed:
        packed.extractall(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| exact match, of 5 | 0.0% | 100.0% |" in card
    assert "| chat template | zephyr |" in card
    published = AutoTokenizer.from_pretrained(tmp_path / "model")
    example = next(read_examples(sums, QUESTIONS))
    turns = [{"role": message.role, "content": message.content} for message in example.messages]
    encoded = load_encoder(base_model, "zephyr").encode(example)
    assert list(encoded.input_ids) == published.apply_chat_template(turns, tokenize=True, return_dict=False)


def test_answers_before_training_survive_a_kill(base_model: Path, sums: Path, tmp_path: Path) -> None:
    request = request_for(
        base_model,
        sums,
        tmp_path,
        setup_here(Method.LORA),
        data_format=QUESTIONS,
        chat_template="zephyr",
        exact_match=ExactMatch(Extract.LAST_NUMBER, rows=3, max_new_tokens=8),
        checkpoint_interval_seconds=0.0,
    )
    run_child(request, kill=lambda report: getattr(report, "step", 0) == 6)
    finished = run_child(request)
    assert any(said.message.startswith("Resumed") for said in finished.of(MessageReport))
    assert [report.phase for report in finished.of(PhaseReport)].count("sampling") == 1  # only after
    (result,) = finished.of(ResultReport)
    assert result.evaluation is not None
    assert result.evaluation.answers == 3


@pytest.mark.parametrize("wanted", [None, ExactMatch(Extract.LAST_NUMBER, rows=2), ExactMatch(Extract.TEXT, rows=90)])
def test_a_plan_counts_the_answers_that_its_run_gives(tmp_path: Path, wanted: ExactMatch | None) -> None:
    request = request_for(tmp_path, tmp_path, tmp_path, setup_here(Method.LORA), exact_match=wanted)
    request = replace(request, sample_count=RunRequest.sample_count)
    planned = PlanRequest("model", "file", exact_match=wanted).answering
    assert (planned.rows, planned.tokens) == (answered_rows(request), answer_length(request))
