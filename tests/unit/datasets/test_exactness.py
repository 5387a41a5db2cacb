"""No value changes on its way from a file to an example."""

import io
import json
import pickle
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.datasets.examples import DataFormat, DataKind
from core.datasets.inspection import inspect_file
from core.datasets.numbers import WrittenNumber, dump_json, load_json
from core.datasets.reading import read_examples, read_rows, scan_rows
from core.datasets.row_errors import RowError

PAIR = DataFormat("question_answer", DataKind.COMPLETION, {"question": "question", "answer": "answer"})
CHAT = DataFormat("messages", DataKind.CHAT, {"messages": "messages"})
NUMBERS = ["1e3", "1000", "1000.0", "-0", "-0.0", "1.10", "0.1", "1E-7", "9007199254740993", "18446744073709551616"]
NUMBERS += ["123456789012345678901234567890", "3.141592653589793238462643"]


def answers(path: Path) -> list[str]:
    return [example.messages[-1].content for example in read_examples(path, PAIR)]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_numbers_keep_their_digits(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x"
    if form == "csv":
        path.write_text("question,answer\n" + "".join(f"q,{number}\n" for number in NUMBERS))
    else:
        rows = [f'{{"question": "q", "answer": {number}}}' for number in NUMBERS]
        path.write_text("\n".join(rows) if form == "jsonl" else "[" + ",".join(rows) + "]")
    assert answers(path) == NUMBERS


@pytest.mark.parametrize("is_text", [True, False])
def test_numbers_in_arguments_of_calls_keep_their_digits(tmp_path: Path, is_text: bool) -> None:
    arguments = '{"a": 1e3, "b": [1.10, -0], "c": 12345678901234567890123, "d": "\\u0000 1e3", "e": null}'
    written = json.dumps(arguments) if is_text else arguments
    path = tmp_path / "x"
    path.write_text(
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": '
        f'[{{"type": "function", "function": {{"name": "f", "arguments": {written}}}}}]}}]}}\n'
    )
    example = next(read_examples(path, CHAT))
    kept = example.messages[1].extra["tool_calls"][0]["function"]["arguments"]
    assert dump_json(kept) == arguments
    assert dump_json(pickle.loads(pickle.dumps(kept))) == arguments


def test_a_written_number_counts_as_the_number_it_is() -> None:
    number = load_json("1e3")
    assert (type(number), number == 1000, str(number), f"{number}") == (WrittenNumber, True, "1e3", "1e3")
    assert type(load_json("0.5")) is float


def parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def test_values_of_parquet_are_written_as_they_are(tmp_path: Path) -> None:
    columns = {
        "big": pa.array([2**63 - 1]),
        "short": pa.array([0.1], pa.float32()),
        "price": pa.array([Decimal("1.50")]),
        "day": pa.array([date(2024, 5, 1)]),
        "moment": pa.array([datetime(2024, 5, 1, 10, 30)]),
        "yes": pa.array([True]),
        "word": pa.array(["x"]).dictionary_encode(),
    }
    path = parquet(tmp_path / "x", pa.table({"question": ["q"], **columns}))
    expected = ["9223372036854775807", "0.1", "1.50", "2024-05-01", "2024-05-01 10:30:00", "true", "x"]
    for column, text in zip(columns, expected, strict=True):
        data_format = DataFormat("question_answer", DataKind.COMPLETION, {"question": "question", "answer": column})
        assert next(read_examples(path, data_format)).messages[-1].content == text


def test_nulls_that_a_struct_added_are_dropped_and_others_kept(tmp_path: Path) -> None:
    structs = [{"args": {"a": 1}, "list": [None, 1]}, {"args": {"b": "x"}, "list": []}]
    table = pa.Table.from_pylist([{"row": struct, "text": '{"a": null}', "alone": None} for struct in structs])
    maps = pa.array([[("k", None)], []], pa.map_(pa.string(), pa.string()))
    rows = [row for _, row in read_rows(parquet(tmp_path / "x", table.append_column("map", maps)))]
    assert rows[0] == {"row": structs[0], "text": '{"a": null}', "alone": None, "map": {"k": None}}
    assert rows[1]["row"] == structs[1]


def test_a_map_with_a_key_twice_is_an_error_of_its_row(tmp_path: Path) -> None:
    maps = pa.array([[("a", 1)], [("k", 1), ("k", 2)], None], pa.map_(pa.string(), pa.int64()))
    path = parquet(tmp_path / "x", pa.table({"question": ["q"] * 3, "map": maps, "in": pa.array([{"m": 1}] * 3)}))
    found = list(scan_rows(path))
    assert [isinstance(row, RowError) for _, row in found] == [False, True, False]
    assert "'k' twice" in str(found[1][1])
    assert found[0][1] == {"question": "q", "map": {"a": 1}, "in": {"m": 1}}


def test_a_missing_answer_is_an_error_of_its_row(tmp_path: Path) -> None:
    found = inspect_file(parquet(tmp_path / "x", pa.table({"question": ["a", "b"], "answer": [1.0, float("nan")]})))
    assert [(issue.row, issue.param) for issue in found.errors] == [(2, "answer")]
    path = tmp_path / "y"
    path.write_text("question,answer,input\na,nan,nan\nb,None,nan\nc,nothing,nan\n")
    found = inspect_file(path)
    assert [issue.row for issue in found.errors] == [1, 2]
    assert [message.content for message in found.preview[0].messages] == ["c", "nothing"]


@pytest.mark.parametrize(
    ("text", "rows", "where"),
    [
        ('[{"a": 1}]\n[{"a": 2}]', 1, "line 2"),
        ('[{"a": 1}, {"a": 2}] oops', 2, "'o'"),
        ('[{"a": 1}]\n{"a": 2}', 1, "'{'"),
        ('[\n]\n"x"', 0, "line 3"),
    ],
)
def test_what_follows_an_array_is_an_error(tmp_path: Path, text: str, rows: int, where: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(RowError) as caught:
        list(read_rows(path))
    assert (caught.value.row, where in caught.value.problem) == (rows + 1, True)


def test_texts_that_are_not_utf8_in_parquet_are_an_error(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    inner = pa.array([[{"role": "user"}]] * 2)
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": text, "messages": inner}), sink)
    path = tmp_path / "x"
    path.write_bytes(sink.getvalue())
    with pytest.raises(Exception, match="not UTF-8") as caught:
        list(read_rows(path))
    assert getattr(caught.value, "code", "") == "not_utf8"
