"""Definitions of tools, in OpenAI's shape whichever one a row has them in."""

from collections.abc import Mapping
from typing import Any

from core.datasets.row_errors import RowError
from core.datasets.values import as_list

__all__ = ["read_tools"]


def read_tools(row: Mapping[str, Any], number: int) -> tuple[dict[str, Any], ...]:
    """The tools of a row. OpenAI's older `functions` and definitions without a type are functions. Raises RowError."""
    found: list[dict[str, Any]] = []
    for column in ("tools", "functions"):
        value = row.get(column)
        if not value:
            continue
        tools = as_list(value, number, column)
        if tools is None or not all(isinstance(tool, Mapping) for tool in tools):
            raise RowError(number, f"{column!r} is not a list of objects.", column, "Use OpenAI's tool definitions.")
        found += [_typed(tool) for tool in tools]
    return tuple(found)


def _typed(tool: Mapping[str, Any]) -> dict[str, Any]:
    is_bare = "function" not in tool and "name" in tool and tool.get("type") in (None, "function")
    if not is_bare:
        return dict(tool)
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
