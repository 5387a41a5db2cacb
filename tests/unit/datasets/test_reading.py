"""Every kind of file gives the same rows, and every broken one says where."""

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from core.datasets import json_array, sources
from core.datasets.examples import DataFormat, DataKind
from core.datasets.formats import RowError
from core.datasets.json_array import iterate_array
from core.datasets.reading import Container, detect_layout, read_examples, read_rows, scan_rows
from core.errors import InvalidDatasetError

ROWS = [
    {"prompt": "What does a lamp cost?", "completion": "42 €, déjà vu 😀"},
    {"prompt": 'Quotes ", commas, and\nlines', "completion": "[fine] {too}"},
    {"prompt": "c\ttabs", "completion": "d\\"},
]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "jsonl": lambda: json_lines(ROWS),
    "jsonl-bom-crlf": lambda: b"\xef\xbb\xbf" + json_lines(ROWS).replace(b"\n", b"\r\n"),
    "json": lambda: json.dumps(ROWS).encode(),
    "json-indented": lambda: b"\xef\xbb\xbf\n " + json.dumps(ROWS, indent=2, ensure_ascii=False).encode() + b"\n",
    "csv": lambda: as_csv(ROWS, ","),
    "csv-bom": lambda: b"\xef\xbb\xbf" + as_csv(ROWS, ","),
    "csv-semicolon": lambda: as_csv(ROWS, ";"),
    "tsv": lambda: as_csv(ROWS, "\t"),
    "parquet": lambda: as_parquet(ROWS),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip-members": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]),
    "zstd": zstandard.compress,
    "zstd-frames": lambda data: zstandard.compress(data[:50]) + zstandard.compress(data[50:]),
}


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_rows_are_the_same_in_every_kind_of_file(
    tmp_path: Path, file: Callable[[], bytes], pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "no-extension"
    path.write_bytes(pack(file()))
    assert list(read_rows(path)) == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize(
    ("text", "container"),
    [
        ('{"a": 1}\n', Container.JSON_LINES),
        ('\n  {"a": 1}', Container.JSON_LINES),
        ('[{"a": 1}]', Container.JSON_ARRAY),
        ("[\n\n  {", Container.JSON_ARRAY),
        ("[]", Container.JSON_ARRAY),
        ("[Chapter 1]\nIt was dark.", Container.TEXT),
        ("prompt,completion\na,b\n", Container.CSV),
        ("Frage;Antwort\na;b\nc;d\n", Container.CSV),
        ("text\nhello\nworld\n", Container.CSV),
        ("Hello, world\nGoodbye, moon\nAgain, sun\n", Container.TEXT),
        ("It was a dark night.\nThe lamp, once lit, turned.\n", Container.TEXT),
        ("one line", Container.TEXT),
    ],
)
def test_the_container_is_told_from_content(tmp_path: Path, text: str, container: Container) -> None:
    path = tmp_path / "data.parquet"
    path.write_text(text)
    assert detect_layout(path).container is container


def test_json_lines_keep_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('\n{"a": 1}\n\n  \n{"a": 2}')
    assert list(read_rows(path)) == [(2, {"a": 1}), (5, {"a": 2})]


def test_text_rows_are_paragraphs_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("One.\nStill one.\n\n\nTwo.\n")
    assert list(read_rows(path)) == [(1, {"text": "One.\nStill one."}), (5, {"text": "Two."})]
    path.write_text("One.\nTwo.\nThree.")
    assert [row["text"] for _, row in read_rows(path)] == ["One.", "Two.", "Three."]


def test_examples_carry_their_row(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(json_lines(ROWS))
    data_format = DataFormat("prompt_completion", DataKind.COMPLETION, {"prompt": "prompt", "completion": "completion"})
    examples = list(read_examples(path, data_format))
    assert [example.row for example in examples] == [1, 2, 3]
    assert examples[0].messages[1].content == "42 €, déjà vu 😀"


def fails(path: Path, data: bytes) -> InvalidDatasetError:
    path.write_bytes(data)
    with pytest.raises(InvalidDatasetError) as caught:
        list(read_rows(path))
    return caught.value


@pytest.mark.parametrize(
    "data", [b"", b"\xef\xbb\xbf", b"  \n\n", gzip.compress(b"", mtime=0), zstandard.compress(b"")]
)
def test_an_empty_file_is_refused(tmp_path: Path, data: bytes) -> None:
    assert fails(tmp_path / "x", data).code == "empty_file"


@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "text"])
def test_a_file_that_is_not_utf8_is_refused_with_line_and_offset(tmp_path: Path, container: str) -> None:
    before = {
        "jsonl": '{"text": "fine €"}\n' * 40000 + '{"text": "caf',
        "json": "[\n" + '{"text": "fine €"},\n' * 40000 + '{"text": "caf',
        "csv": "prompt,completion\n" + "fine,€\n" * 40000 + "caf",
        "text": "fine €\n" * 90000 + "caf",
    }[container].encode()
    error = fails(tmp_path / "x", before + b"\xe9 more")
    assert error.code == "not_utf8"
    assert f"line {before.count(bytes([10])) + 1} " in error.message
    assert f"offset {len(before):,}" in error.message
    assert "0xe9" in error.message


def test_a_file_that_ends_inside_a_character_is_refused(tmp_path: Path) -> None:
    error = fails(tmp_path / "x", b"fine\n" + "€".encode()[:2])
    assert error.code == "not_utf8"
    assert "line 2 " in error.message


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"\xff\xfe" + '{"a": 1}'.encode("utf-16-le") + b"\n", "not_utf8", "UTF-16"),
        (b"PK\x03\x04\0\0", "unsupported_file", "spreadsheet"),
        (b"\x89PNG\0\0", "unsupported_file", "binary"),
        (b'{\n  "a": 1\n}\n', "invalid_dataset", "several lines"),
        (b'{"a": 1}\r{"a": 2}\r', "invalid_dataset", "carriage returns"),
        (b"# exported\nquestion,answer\na,b\nc,d\n", "invalid_dataset", "Line 2 names the columns"),
        (b"Our questions\n\nquestion;answer\na;b\nc;d\n", "invalid_dataset", "Line 3 names the columns"),
        (b"| question | answer |\n|:---|---|\n| a | b |\n", "unsupported_file", "Markdown"),
        (b'// rows\n{"a": 1}\n{"a": 2}\n', "invalid_dataset", "Line 2 is a JSON object"),
        (gzip.compress(gzip.compress(json_lines(ROWS))), "unsupported_file", "packed twice"),
        (b"PAR1 but not really", "damaged_file", "Parquet"),
        (as_parquet(ROWS)[:-20], "damaged_file", "Parquet"),
        (gzip.compress(json_lines(ROWS), mtime=0)[:-12], "damaged_file", "cut off"),
        (zstandard.compress(json_lines(ROWS) * 99)[:-9] + b"123456789", "damaged_file", "damaged"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path: Path, data: bytes, code: str, said: str) -> None:
    error = fails(tmp_path / "x", data)
    assert error.code == code
    assert said in error.message


@pytest.mark.parametrize(
    ("data", "row", "said"),
    [
        (b'{"a": 1}\n{"a": 2\n{"a": 3}\n', 2, "line 2 is not valid JSON"),
        (b'{"a": 1}\n\n{"a": "x" "b": 1}\n', 3, "column 11"),
        (b'{"a": NaN}\n', 1, "NaN is not JSON"),
        (b'{"a": 1, "a": 2}\n', 1, "'a' twice"),
        (b'{"a": [{"b" : "\\":", "b": 2}]}\n', 1, "'b' twice"),
        (b'[{"a": 1}, {"a": 1, "a": 2}]', 2, "'a' twice"),
        (b'{"a": "\\ud800"}\n', 1, "surrogate"),
        (b'{"a": 1}\n[1, 2]\n', 2, "list, not an object"),
        (b'[{"role": "user"}]\n[{"role": "user"}]\n', 1, 'Wrap each list: {"messages"'),
        (b'[[{"role": "user"}], [{"role": "user"}]]', 1, 'Wrap each list: {"messages"'),
        (b'["q", "a"]\n["q", "a"]\n', 1, "list, not an object. Write each row as an object"),
        (b'{"a": 1}\n"text"\n', 2, "str, not an object"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", 1, "64 levels"),
        (b'{"a": ' + b"[" * 100000 + b"]" * 100000 + b"}", 1, "nested too deeply"),
        (b'[{"a": 1},\n{"a": }]', 2, "line 2, column 7"),
        (b'[{"a": 1}, {"a": 2}, 3]', 3, "int, not an object"),
        (b'[{"a": 1} {"a": 2}]', 2, "after row 1"),
        (b'[{"a": 1}, {"a": "never closed}]', 2, "Unterminated string"),
        (b'[{"a": 1}, {"a": 2}', 3, "the file ends after it"),
        (b'[{"a": 1},]', 2, "not valid JSON"),
        (b'[{"a": NaN}]', 1, "NaN"),
        (b'[{"a": "\\uD83D"}]', 1, "surrogate"),
        (b'[{"a": ' + b"9" * 5000 + b"}]", 1, "number is too long"),
        (b'[{"a": ' + b"[" * 70 + b"]" * 70 + b"}]", 1, "64 levels"),
        (b"[" * 200000, 1, "nested too deeply"),
        (b"prompt,completion\na,b\nc\nd,e\n", 2, "line 3 has 1 fields where the first row has 2"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, data: bytes, row: int, said: str) -> None:
    error = fails(tmp_path / "x", data)
    assert isinstance(error, RowError)
    assert error.row == row
    assert said in error.message
    assert error.fix


def test_marks_of_keys_inside_texts_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b'{"a": "{\\"a\\":1,\\"a\\":2}", "b" : [{"a": "b"}, {"a": "b"}]}\n')
    assert [row for _, row in read_rows(path)] == [{"a": '{"a":1,"a":2}', "b": [{"a": "b"}, {"a": "b"}]}]


def test_scanning_goes_on_after_a_broken_row(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b'{"a": 1}\n{"a": \n[]\n{"a": 4}\n')
    found = list(scan_rows(path))
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert [isinstance(row, RowError) for _, row in found] == [False, True, True, False]


@pytest.mark.parametrize("limit", [1000, sources.MAX_ROW_BYTES])
def test_an_unclosed_quote_in_csv_is_named(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.datasets.text_tables.MAX_ROW_BYTES", limit)
    error = fails(tmp_path / "x", b'prompt,completion\na,b\nc,"d\n' + b"e,f\n" * 1000)
    assert "Row 2" in error.message
    assert "line 3" in error.message
    assert "never closed" in error.message


def test_rows_without_end_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    for opening in (b'{"text": "', b'[{"text": "', b"words "):
        path = tmp_path / "x"
        path.write_bytes(gzip.compress(b"a: 1\n\n" * (opening[:1] == b"w") + opening + b"x" * 60_000_000, 1))
        tracemalloc.start()
        with pytest.raises(InvalidDatasetError) as caught:
            list(read_rows(path))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert caught.value.code == "row_too_large"
        assert peak < 8 * sources.MAX_ROW_BYTES


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_decompression_bombs_are_stopped(
    tmp_path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MIN_EXPANDED_BYTES", 1_000_000)
    error = fails(tmp_path / "x", compress(b'{"a": 1}\n' * 3_000_000))
    assert error.code == "file_too_large"
    assert "unpacks to more than" in error.message


json_rows = st.lists(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**60), 2**60)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(rows=json_rows, chunk=st.integers(1, 40), indent=st.none() | st.integers(0, 3), ascii_only=st.booleans())
def test_an_array_reads_the_same_whatever_the_window(
    rows: list[dict[str, Any]], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    original = json_array._CHUNK_CHARACTERS
    json_array._CHUNK_CHARACTERS = chunk
    try:
        assert list(iterate_array(io.StringIO(text))) == list(enumerate(rows, start=1))
    finally:
        json_array._CHUNK_CHARACTERS = original


@settings(deadline=None, max_examples=60)
@given(rows=json_rows, data=st.data())
def test_an_array_with_a_byte_changed_never_crashes(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    text = json.dumps(rows)
    at = data.draw(st.integers(1, len(text) - 1))
    broken = text[:at] + data.draw(st.sampled_from('[]{}",:x1 \\')) + text[at + 1 :]
    found = list(iterate_array(io.StringIO(broken)))
    assert all(isinstance(row, dict | RowError) for _, row in found)
    try:
        expected = json.loads(broken)
    except ValueError:
        return
    if "\\ud" not in broken:  # Python lets half a surrogate pair pass; no tokenizer can encode it
        assert [row for _, row in found if not isinstance(row, RowError)] == [r for r in expected if type(r) is dict]
