"""Small files that hold much: each is refused, or read row by row, before it takes memory."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.datasets.inspection import inspect_file
from core.datasets.nesting import MAX_KEYS, MAX_PARTS
from core.datasets.text_tables import MAX_COLUMNS
from core.db.serialization import serialize
from core.errors import InvalidDatasetError

LONG = "x" * 5_000_000


def named_often(rows: int, text: str = LONG) -> pa.Array:
    """A text that is stored once and named by every row."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))


def conversations(rows: int, turns: int) -> pa.Array:
    fields = [named_often(rows * turns, "user"), named_often(rows * turns)]
    messages = pa.StructArray.from_arrays(fields, names=["role", "content"])
    return pa.ListArray.from_arrays(pa.array(range(0, rows * turns + 1, turns), pa.int32()), messages)


def peak_of(path: Path) -> tuple[int, InvalidDatasetError | Any]:
    """Arrow's bytes at the most, and what the inspection found or raised."""
    pool, before = pa.system_memory_pool(), pa.default_memory_pool()
    pa.set_memory_pool(counted := pa.proxy_memory_pool(pool))
    try:
        found: Any = inspect_file(path)
    except InvalidDatasetError as error:
        found = error
    finally:
        pa.set_memory_pool(before)
    return counted.max_memory() or 0, found


def test_a_text_that_many_rows_name_is_not_decoded_for_each(tmp_path: Path) -> None:
    path = tmp_path / "x"
    pq.write_table(pa.table({"text": named_often(5000)}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    peak, error = peak_of(path)
    assert (error.code, "once they are decoded" in error.message) == ("file_too_large", True)
    assert peak < 64 * 1024**2


def test_a_row_that_names_a_text_too_often_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x"
    pq.write_table(pa.table({"messages": conversations(3, 400)}), path, compression="zstd")
    peak, found = peak_of(path)
    assert [issue.row for issue in found.errors] == [1, 2, 3]
    assert "2,000,0" in found.errors[0].message
    assert peak < 64 * 1024**2


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        (lambda: pa.table({"a": pa.nulls(3_000_000)}), {}, "rows"),
        (lambda: pa.table({"a": pa.array([[0] * 400_000])}), {}, "values in 1 rows"),
        (lambda: pa.table({"text": [LONG * 14]}), {"use_dictionary": False, "write_statistics": False}, "unpacks to"),
        (
            lambda: pa.table({"text": [LONG + str(number) for number in range(30)]}),
            {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
            "DELTA_BYTE_ARRAY",
        ),
    ],
)
def test_what_a_parquet_file_says_of_itself_is_looked_at_first(
    tmp_path: Path, table: Any, options: dict[str, Any], said: str
) -> None:
    path = tmp_path / "x"
    pq.write_table(table(), path, compression="zstd", **options)
    peak, error = peak_of(path)
    assert (error.code, said in error.message) == ("file_too_large", True), error
    assert peak < 8 * 1024**2


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"question,answer\na,b\nc," + b"x" * 20_000_000, "row_too_large"),
        (b'question,answer\na,"' + (b"x" * 1000 + b"\n") * 20_000, "row_too_large"),
        (b"question,answer\na,b" + b"," * 1_000_000, "row_too_large"),
        (b"question,answer" + b",x" * MAX_COLUMNS + b"\n1,2\n", "row_too_large"),
        (b'[{"a": [' + b"{}," * (6 * MAX_PARTS) + b"{}]}]", "row_too_large"),
    ],
)
def test_rows_of_text_are_bounded(tmp_path: Path, data: bytes, code: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(data, 1))
    with pytest.raises(InvalidDatasetError) as caught:
        inspect_file(path)
    assert caught.value.code == code
    assert any(character.isdigit() for character in caught.value.message)


@pytest.mark.parametrize(
    "row",
    [
        b'{"a": [' + b"{}," * (MAX_PARTS + 1) + b"{}]}",
        json.dumps({f"k{number}": 0 for number in range(MAX_KEYS + 1)}).encode(),
    ],
)
def test_a_row_of_too_many_parts_is_an_error_of_its_own(tmp_path: Path, row: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(b'{"text": "a"}\n' + row + b'\n{"text": "b"}\n')
    found = inspect_file(path)
    assert ([issue.row for issue in found.errors], found.rows, len(found.columns)) == ([2], 3, 1)


def test_what_is_kept_of_a_file_is_small(tmp_path: Path) -> None:
    much = "n" * 100_000
    turn = {"role": "assistant", "content": much, "note": much, "more": {much: [much] * 50}}
    row = {"messages": [{"role": "user", "content": "q"}, turn], "tools": [{"name": much}] * 50, much: much}
    path = tmp_path / "x"
    path.write_text((json.dumps(row) + "\n") * 3 + json.dumps({"messages": [{"role": much, "content": ""}]}) + "\n")
    found = inspect_file(path)
    assert (found.rows, found.error_count) == (4, 1)
    assert len(json.dumps(serialize(found))) < 100_000  # of about 30 MB
