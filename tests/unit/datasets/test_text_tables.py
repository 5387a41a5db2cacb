"""Tables as text, as spreadsheets and data frames write them."""

from pathlib import Path

import pytest

from core.datasets.examples import DataFormat, DataKind
from core.datasets.inspection import inspect_file
from core.datasets.reading import read_examples, read_rows
from core.errors import InvalidDatasetError

PLAIN = "question,answer\nWhere?,Here\nWhen?,Now\n"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").replace("\n", "\r\n").encode(),
        ("sep=;\r\n" + PLAIN.replace(",", ";")).encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
        PLAIN.encode("utf-32"),
        b",question,answer\n0,Where?,Here\n1,When?,Now\n",
        b"#,question,answer\n7,Where?,Here\n8,When?,Now\n",
        b"question,answer,answer\nWhere?,Here,x\nWhen?,Now,y\n",
        b"question,answer,\nWhere?,Here,\nWhen?,Now,\n",
        b"question,answer\nWhere?,Here,\nWhen?,Now,,\n",
        b" Question? , ANSWER!\nWhere?,Here\nWhen?,Now\n",
        b'"question","answer"\n"Where?","Here"\n\n"When?","Now"\n',
    ],
)
def test_a_table_is_read_as_it_was_meant(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    found = inspect_file(path)
    assert (found.container, found.rows, found.error_count) == ("csv", 2, 0)
    assert found.require_format().shape == "question_answer"
    texts = [[message.content for message in example.messages] for example in found.preview]
    assert texts == [["Where?", "Here"], ["When?", "Now"]]


ALPHABETS = {
    "Russian": ("Где маяк?", "Здесь"),
    "Greek": ("Πού;", "Εδώ"),
    "Chinese": ("灯塔在哪里？", "一楼"),
    "Japanese": ("どこ？", "ここ"),
    "Korean": ("어디?", "여기"),
    "Arabic": ("أين؟", "هنا"),
    "Hindi": ("कहाँ?", "यहाँ"),
    "emoji": ("😀", "😁"),
}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_wide_text_is_read_without_a_byte_order_mark_in_every_alphabet(
    tmp_path: Path, alphabet: str, encoding: str
) -> None:
    asked, said = ALPHABETS[alphabet]
    path = tmp_path / "x"
    path.write_bytes(f"{said}\t{asked}\n{asked}\t{said}\n{asked}{asked}\t{said}\n".encode(encoding))
    assert pairs(path, "column_1", "column_2")[-2:] == [[asked, said], [asked + asked, said]]
    path.write_bytes(f"{asked}\n\n{said}\n".encode(encoding))
    assert [row["text"] for _, row in read_rows(path)] == [asked, said]


@pytest.mark.parametrize("data", ["A lamp.\nA ship\0.\n", "Маяк.\nКорабль\0.\n", "灯。\n船\0。\n", "\x01\x02\0\x07"])
def test_text_with_a_zero_byte_is_refused_with_what_to_do(tmp_path: Path, data: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(data.encode())
    with pytest.raises(InvalidDatasetError) as caught:
        inspect_file(path)
    assert caught.value.code == "unsupported_file"
    assert f"offset {data.encode().index(0)}" in caught.value.message
    assert "Save text as UTF-8" in caught.value.message


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "text"])
def test_western_text_of_windows_is_read_and_said(tmp_path: Path, form: str) -> None:
    text = "Das schöne Café – „groß“"
    written = {
        "csv": f"question,answer\n{'a,b' * 1}\n{text},{text}\n",
        "jsonl": '{"text": "plain"}\n' * 3000 + f'{{"text": "{text}"}}\n' * 2,
        "json": '[{"text": "plain"},' * 1 + f'{{"text": "{text}"}}]',
        "text": "plain\n" * 20000 + text + "\n",
    }[form]
    path = tmp_path / "x"
    path.write_bytes(written.encode("cp1252"))
    found = inspect_file(path)
    assert [notice.code for notice in found.notices] == ["read_as_cp1252"]
    last = list(read_examples(path, found.require_format()))[-1]
    assert (last.text or last.messages[-1].content) == text


@pytest.mark.parametrize("encoding", ["shift_jis", "gbk", "cp1251"])
def test_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    text = {"shift_jis": "質問と答え", "gbk": "问题和答案", "cp1251": "Вопрос и ответ"}[encoding]
    path = tmp_path / "x"
    path.write_bytes(f"question,answer\n{text},{text}\n".encode(encoding))
    with pytest.raises(InvalidDatasetError) as caught:
        inspect_file(path)
    assert caught.value.code == "not_utf8"


def pairs(path: Path, first: str, second: str) -> list[list[str]]:
    data_format = DataFormat("prompt_completion", DataKind.COMPLETION, {"prompt": first, "completion": second})
    return [[message.content for message in example.messages] for example in read_examples(path, data_format)]


@pytest.mark.parametrize(
    ("text", "is_data"),
    [
        ("What is 2+2?,four\nWhat is 3+3?,six\n", True),
        ("hello,hi there\ngood night,sleep well\n", True),
        ("Frage,Antwort\nWo?,Hier\n", False),
    ],
)
def test_a_first_row_that_may_be_data_is_said_and_can_be_both(tmp_path: Path, text: str, is_data: bool) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    found = inspect_file(path)
    first, *rest = [line.split(",") for line in text.splitlines()]
    assert found.data_format is None
    assert [notice.code for notice in found.notices] == ["first_row_is_data" if is_data else "first_row_names_columns"]
    assert found.columns == (("column_1", "column_2") if is_data else tuple(first))
    assert found.other_columns == (tuple(first) if is_data else ("column_1", "column_2"))
    assert found.rows == len(rest) + is_data
    assert pairs(path, "column_1", "column_2") == [first, *rest]
    assert pairs(path, *first) == rest


@pytest.mark.parametrize(
    ("text", "row", "said"),
    [
        ('question,answer\na,b\n"c" d,e\nf,g\n', 2, "line 3"),
        ("question,answer\na,b\nc,d,e\nf,g\n", 2, "3 fields"),
        ("question,answer\na,b\nc\nf,g\n", 2, "1 fields"),
    ],
)
def test_a_broken_row_of_a_table_can_be_left_out(tmp_path: Path, text: str, row: int, said: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    found = inspect_file(path)
    assert [(issue.row, said in issue.message) for issue in found.errors] == [(row, True)]
    assert (found.rows, found.is_cut_short) == (3, False)


def test_a_quote_that_is_never_closed_cannot(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('question,answer\na,b\nc,"d\ne,f\n')
    assert inspect_file(path).is_cut_short
