"""What inspection finds in a file, and which files it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from core.datasets import measurement
from core.datasets.encoding import load_encoder
from core.datasets.examples import DataFormat, DataKind
from core.datasets.inspection import (
    Inspection,
    TokenInspection,
    check_structure,
    check_trainable,
    inspect_file,
    measure_tokens,
    overlap,
)
from core.datasets.previews import without_nul
from core.datasets.reading import read_examples
from core.db.serialization import deserialize, serialize
from core.errors import InvalidDatasetError
from tests.unit.datasets.template_shapes import CHATML, WORDS

CHAT = DataFormat("messages", DataKind.CHAT, {"messages": "messages"})
SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "datasets"


def chat(question: str, answer: str, **answer_fields: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **answer_fields},
        ]
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_good_file_is_counted_and_previewed(tmp_path: Path) -> None:
    rows = [{**chat(f"q{i}", f"a{i}"), "id": i} for i in range(8)]
    path = write(tmp_path / "x", rows)
    found = inspect_file(path)
    assert found.data_format == CHAT
    assert (found.container, found.columns, found.rows) == ("jsonl", ("messages", "id"), 8)
    assert found.size_bytes == path.stat().st_size
    assert (found.errors, found.error_count, found.duplicates, found.untrainable_rows) == ((), 0, 0, 0)
    assert [example.messages[1].content for example in found.preview] == ["a0", "a1", "a2", "a3", "a4"]
    check_structure(found)


def test_findings_survive_storage_as_json(tmp_path: Path) -> None:
    found = inspect_file(write(tmp_path / "x", [chat("q", "a", name="bot"), {"messages": 1}]))
    adapter = TypeAdapter(Inspection)
    assert adapter.validate_json(adapter.dump_json(found)) == found


def test_bad_rows_are_collected_up_to_a_limit_and_counted_beyond(tmp_path: Path) -> None:
    path = write(tmp_path / "x", [chat("q", "a"), *[{"messages": []}] * 30])
    with path.open("a") as file:
        file.write("{broken\n")
    found = inspect_file(path, max_errors=5)
    assert [issue.row for issue in found.errors] == [2, 3, 4, 5, 6]
    assert (found.rows, found.error_count) == (32, 31)
    assert str(found.errors[0]).startswith("Row 2: 'messages' is an empty list.")
    with pytest.raises(InvalidDatasetError, match=r"31 of 32 rows cannot be used\. Row 2: .* And 28 more\."):
        check_structure(found)


@pytest.mark.parametrize("count", [9, 60])
def test_duplicates_are_counted_and_placed(tmp_path: Path, count: int) -> None:
    rows = [chat(f"q{i}", "a") for i in range(count)]
    rows += [chat("q1", "a"), chat("q1", "a", weight=1), chat("q1", "other")]
    found = inspect_file(write(tmp_path / "x", rows))
    assert (found.duplicates, found.duplicate_rows) == (2, (count + 1, count + 2))


def test_rows_that_train_nothing_are_counted(tmp_path: Path) -> None:
    rows = [chat("q", "a")] * 6 + [
        chat("q", " "),
        chat("q", "a", weight=0),
        {"messages": [{"role": "user", "content": "q"}]},
    ]
    found = inspect_file(write(tmp_path / "x", rows))
    assert (found.untrainable_rows, found.first_untrainable_rows) == (3, (7, 8, 9))
    check_structure(found)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([chat("q", "a")], "too_few_examples"),
        ([chat("q", "a", weight=0), chat("q", "")], "no_trainable_tokens"),
        ([{"a": "1", "b": "2", "c": "3"}] * 3, "unknown_format"),
        ([{"messages": "x"}] * 3, "invalid_dataset"),
    ],
)
def test_files_that_train_nothing_are_refused(tmp_path: Path, rows: list[dict[str, Any]], code: str) -> None:
    found = inspect_file(write(tmp_path / "x", rows))
    with pytest.raises(InvalidDatasetError) as caught:
        check_structure(found, param="training_file")
    assert caught.value.code == code


def test_a_mapping_of_columns_overrides_detection(tmp_path: Path) -> None:
    path = write(tmp_path / "x", [{"a": "1", "b": "2", "c": "3"}] * 3)
    assert inspect_file(path).data_format is None
    mapping = DataFormat("prompt_completion", DataKind.COMPLETION, {"prompt": "a", "completion": "c"})
    found = inspect_file(path, data_format=mapping)
    assert (found.data_format, found.error_count) == (mapping, 0)
    assert [message.content for message in found.preview[0].messages] == ["1", "3"]


def test_what_no_database_stores_is_shown_as_text(tmp_path: Path) -> None:
    rows = '{"prompt": "a\\u0000b", "completion": 12345678901234567890123}\n{"prompt": "c", "completion": "d"}\n'
    path = tmp_path / "x"
    path.write_text(rows)
    inspection = inspect_file(path)
    assert inspection.preview[0].messages[1].content == "12345678901234567890123"
    assert "\0" in inspection.preview[0].messages[0].content
    stored = without_nul(serialize(inspection))
    assert "\\u0000" not in json.dumps(stored)
    assert deserialize(Inspection, stored).preview[0].messages[0].content == "a\u2400b"


def test_long_previews_are_clipped(tmp_path: Path) -> None:
    found = inspect_file(write(tmp_path / "x", [chat("q" * 9000, "a")] * 2))
    assert len(found.preview[0].messages[0].content) == 2000


def test_overlap_is_found_across_formats(tmp_path: Path) -> None:
    train = write(tmp_path / "train", [chat(f"q{i}", f"a{i}") for i in range(10)])
    held_out = tmp_path / "held_out"
    held_out.write_text("prompt,completion\nq3,a3\nq3,different\nnew,new\nq9,a9\n")
    pair = DataFormat("prompt_completion", DataKind.COMPLETION, {"prompt": "prompt", "completion": "completion"})
    found = overlap(read_examples(train, CHAT), read_examples(held_out, pair))
    assert (found.count, found.rows) == (2, (1, 4))


MakeDirectory = Callable[..., Path]


def test_tokens_are_counted(tmp_path: Path, model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML))
    path = write(tmp_path / "x", [chat("short", "a"), chat("longer " * 40, "b c d"), chat("none", "x", weight=0)])
    encoded = [encoder.encode(example) for example in read_examples(path, CHAT)]
    found = measure_tokens(path, CHAT, encoder)
    statistics = found.statistics
    assert (statistics.examples, statistics.sampled) == (3, False)
    assert statistics.tokens == sum(len(one.input_ids) for one in encoded)
    assert statistics.trained_tokens == sum(sum(one.completion_mask) for one in encoded)
    assert statistics.token_lengths == tuple(sorted(len(one.input_ids) for one in encoded))
    assert (found.masked_rows, found.first_masked_rows) == (1, (3,))
    assert (found.eos_trained, found.rows_without_eos, found.truncated_rows) == (True, 0, 0)
    assert sum(found.histogram.counts) == 3
    assert len(found.histogram.edges) == len(found.histogram.counts) + 1
    assert found.preview[0].segments[1] == ("a<|im_end|>", True)
    assert found.preview[0].trained_tokens == sum(encoded[0].completion_mask)
    check_trainable(found)
    adapter = TypeAdapter(TokenInspection)
    assert adapter.validate_json(adapter.dump_json(found)) == found


def test_every_length_is_in_its_bucket(tmp_path: Path, model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML))
    path = write(tmp_path / "x", [chat("lamp " * n, "a") for n in range(0, 200, 7)])
    found = measure_tokens(path, CHAT, encoder)
    lengths, edges = found.statistics.token_lengths, found.histogram.edges
    assert edges == tuple(sorted(set(edges)))
    for low, high, count in zip(edges[:-1], edges[1:], found.histogram.counts, strict=True):
        assert count == sum(low <= length < high for length in lengths)
    assert sum(found.histogram.counts) == len(lengths)


def test_truncation_is_counted_and_not_fatal(tmp_path: Path, model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML))
    path = write(tmp_path / "x", [chat("short", "a"), chat("longer " * 40, "b c d")])
    whole = measure_tokens(path, CHAT, encoder)
    found = measure_tokens(path, CHAT, encoder, max_length=32)
    assert found.statistics.token_lengths == whole.statistics.token_lengths
    assert (found.truncated_rows, found.truncated_tokens) == (1, whole.statistics.longest - 32)
    assert (found.masked_rows, found.first_masked_rows) == (1, (2,))
    assert found.eos_trained
    check_trainable(found)


def test_a_set_that_is_cut_off_before_its_answers_is_refused(tmp_path: Path, model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(CHATML))
    path = write(tmp_path / "x", [chat("longer " * 40, "b c d")] * 2)
    with pytest.raises(InvalidDatasetError, match="cut off at 16 tokens") as caught:
        check_trainable(measure_tokens(path, CHAT, encoder, max_length=16), param="training_file")
    assert (caught.value.code, caught.value.param) == ("no_trainable_tokens", "training_file")
    with pytest.raises(InvalidDatasetError) as caught:
        check_trainable(measure_tokens(write(tmp_path / "x", [chat("q", "a")]), CHAT, encoder))
    assert caught.value.code == "too_few_examples"


def test_a_large_set_is_sampled_and_scaled(
    tmp_path: Path, model_directory: MakeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(model_directory(CHATML))
    rows = [chat("lamp " * (i % 23), "a") for i in range(3000)]
    rows[1234] = chat("lamp " * 900, "a")
    path = write(tmp_path / "x", rows)
    whole = measure_tokens(path, CHAT, encoder).statistics
    found = measure_tokens(path, CHAT, encoder, sample_rows=400).statistics
    assert (found.examples, found.sampled, whole.sampled) == (3000, True, False)
    assert found.tokens == pytest.approx(whole.tokens, rel=0.05)
    assert found.trained_tokens == whole.trained_tokens
    assert found.longest == whole.longest
    assert 400 <= len(found.token_lengths) <= 408
    assert measure_tokens(path, CHAT, encoder, sample_rows=400).statistics == found
    monkeypatch.setattr(measurement, "_BATCH", 7)
    assert measure_tokens(path, CHAT, encoder, sample_rows=400).statistics == found


def test_a_model_whose_template_never_ends_a_turn_still_trains_eos(
    tmp_path: Path, model_directory: MakeDirectory
) -> None:
    encoder = load_encoder(model_directory(WORDS))
    path = write(tmp_path / "x", [chat("q", "a"), chat("q", "b")])
    assert measure_tokens(path, CHAT, encoder).eos_trained


def test_rows_that_never_train_eos_are_reported(tmp_path: Path, model_directory: MakeDirectory) -> None:
    encoder = load_encoder(model_directory(WORDS))
    open_ended = chat("q", "a")
    open_ended["messages"].append({"role": "user", "content": "more"})
    found = measure_tokens(write(tmp_path / "x", [chat("q", "a"), open_ended]), CHAT, encoder)
    assert (found.eos_trained, found.rows_without_eos) == (False, 1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets shared beside the repository are absent")
@pytest.mark.parametrize(
    ("name", "shape", "container"),
    [("alpaca_en_demo.json", "alpaca", "json"), ("gsm8k_test.jsonl", "question_answer", "jsonl")],
)
def test_published_sets_are_understood(name: str, shape: str, container: str, model_directory: MakeDirectory) -> None:
    found = inspect_file(SHARED / name)
    assert found.data_format is not None
    assert (found.data_format.shape, found.container, found.error_count) == (shape, container, 0)
    check_structure(found)
    tokens = measure_tokens(SHARED / name, found.data_format, load_encoder(model_directory(CHATML)), sample_rows=300)
    assert tokens.statistics.examples == found.rows
    assert tokens.eos_trained
