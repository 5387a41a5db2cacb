"""A column that holds something and is not read is told, with its rows and the first of them."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from core.datasets.inspection import inspect_file
from core.datasets.notices import Notice

PAIR = {"prompt": "Which lamp is lit?", "completion": "The tall one."}
TURNS = {"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "That."}]}


def noticed(path: Path, rows: list[dict[str, Any]]) -> list[Notice]:
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return [notice for notice in inspect_file(path).notices if notice.code == "column_not_read"]


def test_columns_that_nothing_is_read_of_are_told(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "source": "log"}, {**PAIR, "source": ""}, {**PAIR, "source": "book", "stars": 4}] * 3
    [source, stars] = noticed(tmp_path / "rows", rows)
    assert (source.rows, source.first_row, stars.rows, stars.first_row) == (6, 2, 3, 4)
    assert "'source'" in source.message


def test_columns_beside_plain_conversations_are_told_of_every_row(tmp_path: Path) -> None:
    [found] = noticed(tmp_path / "rows", [TURNS] * 8 + [{**TURNS, "topic": "lamps"}] * 5)
    assert (found.rows, found.first_row) == (5, 9)


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        TURNS,
        {**TURNS, "tools": [{"type": "function", "function": {"name": "track"}}]},
        {**PAIR, "system": "Be brief."},
        {**PAIR, "label": True},
        {"prompt": "Which?", "chosen": "That.", "rejected": "This."},
        {"instruction": "Name it.", "input": "a lamp", "output": "Lamp."},
        {"instruction": "Name it.", "context": "a lamp", "response": "Lamp."},
    ],
    ids=["pair", "turns", "tools", "system", "label", "preference", "alpaca", "dolly"],
)
def test_nothing_is_said_of_columns_that_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    assert noticed(tmp_path / "rows", [row] * 8) == []
