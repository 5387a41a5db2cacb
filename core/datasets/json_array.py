"""A JSON array, one element at a time, in bounded memory.

Python's own decoder tells where an element ends, so elements are decoded from a window that grows only while an
element does not fit. (ijson holds a path per open bracket: 100 kB of "[" make it allocate gigabytes.)
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from core.datasets.conversations import how_to_name
from core.datasets.nesting import MAX_DEPTH, MAX_KEYS, MAX_PARTS, has_too_many_parts, is_too_deep
from core.datasets.numbers import DECODER
from core.datasets.repeated_keys import TWICE_FIX, repeated_key, said_twice
from core.datasets.row_errors import RowError, UnreadableRestError
from core.datasets.sources import MAX_ROW_BYTES
from core.errors import InvalidDatasetError

__all__ = ["iterate_array", "json_problem"]

_CHUNK_CHARACTERS = 256 * 1024
_BLANKS = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Failures with a position far before the end of the window that more text can still cure.
_UNFINISHED = ("Unterminated string", "Invalid \\escape", "Invalid \\uXXXX")


def json_problem(text: str, fallback: str) -> str:
    """What is wrong with one line of JSON, with its column; `fallback` where only a stricter reader objects."""
    try:
        DECODER.decode(text)
    except json.JSONDecodeError as error:
        return f"{error.msg} at column {error.colno}" if error.doc is text else error.msg
    except (RecursionError, ValueError):
        return "it is nested too deeply or holds a number that is too long"
    return fallback


class _Window:
    """The part of the text being decoded. `line` is the line of its first character."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._source = text
        self.text = ""
        self.position = 0
        self.line = 1
        self.is_at_end = False

    def grow(self) -> None:
        """Drop what has been used and read as much again as is held, at least one chunk."""
        self.line += self.text.count("\n", 0, self.position)
        self.text = self.text[self.position :]
        self.position = 0
        more = self._source.read(max(_CHUNK_CHARACTERS, len(self.text)))
        self.is_at_end = not more
        self.text += more

    def skip_blanks(self) -> str:
        """The next character that is not blank, "" at the end of the file."""
        while True:
            blanks = _BLANKS.match(self.text, self.position)
            self.position = blanks.end() if blanks else self.position
            if self.position < len(self.text) or self.is_at_end:
                return self.text[self.position : self.position + 1]
            self.grow()

    def line_at(self, position: int) -> int:
        return self.line + self.text.count("\n", 0, position)


def iterate_array(text: io.TextIOBase) -> Iterator[tuple[int, Mapping[str, Any] | RowError]]:
    """Elements with their number from 1, or what is wrong with that element; ends after one that is not JSON.

    Raises InvalidDatasetError for an element above 16 MiB, and UnicodeDecodeError.
    """
    window = _Window(text)
    window.skip_blanks()
    window.position += 1  # the opening bracket
    number = 0
    if window.skip_blanks() == "]":
        yield from _after_array(window, 0)
        return
    while True:
        number += 1
        window.skip_blanks()
        try:
            element, piece = _next_element(window, number)
        except json.JSONDecodeError as error:
            where = window.line_at(error.pos)
            yield number, _broken(number, f"it is not valid JSON: {error.msg} (line {where}, column {error.colno}).")
            return
        yield number, _checked(element, piece, number)
        following = window.skip_blanks()
        if following == ",":
            window.position += 1
        elif following == "]":
            yield from _after_array(window, number)
            return
        else:
            where = window.line_at(window.position)
            what = f"{following!r} follows it" if following else "the file ends after it"
            yield number + 1, _broken(number + 1, f"after row {number} (line {where}) {what}, not ',' or ']'.")
            return


def _after_array(window: _Window, number: int) -> Iterator[tuple[int, RowError]]:
    window.position += 1
    following = window.skip_blanks()
    if following:
        where = window.line_at(window.position)
        problem = f"the array ends after row {number}, and {following!r} follows it (line {where})."
        fix = "Put all rows into one array, or each on a line of its own without brackets around them."
        yield number + 1, UnreadableRestError(number + 1, problem, None, fix)


def _broken(number: int, problem: str) -> RowError:
    return UnreadableRestError(number, problem, None, "Correct the array there; rows after it were not read.")


def _next_element(window: _Window, number: int) -> tuple[object, str]:
    """The element at the window's position and its text. Raises JSONDecodeError with a position in the window."""
    while True:
        try:
            element, end = DECODER.raw_decode(window.text, window.position)
        except json.JSONDecodeError as error:
            unfinished = error.msg.startswith(_UNFINISHED) or error.pos >= len(window.text) - 16
            if window.is_at_end or not unfinished or error.doc is not window.text:
                raise _with_position(error, window) from error
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", window.text, window.position) from None
        except ValueError:  # int() refuses more than 4,300 digits
            raise json.JSONDecodeError("a number is too long", window.text, window.position) from None
        else:
            if end < len(window.text) or window.is_at_end:
                piece = window.text[window.position : end]
                window.position = end
                return element, piece
        if has_too_many_parts(window.text[window.position :]):
            raise InvalidDatasetError(
                f"Row {number} (line {window.line_at(window.position)}) holds over {MAX_PARTS:,} lists and objects.",
                code="row_too_large",
            )
        if len(window.text) - window.position > MAX_ROW_BYTES:
            raise InvalidDatasetError(
                f"Row {number} (line {window.line_at(window.position)}) does not end within {MAX_ROW_BYTES:,} "
                "characters. Look for a quote or bracket that is never closed.",
                code="row_too_large",
            )
        window.grow()


def _with_position(error: json.JSONDecodeError, window: _Window) -> json.JSONDecodeError:
    if error.doc is window.text:
        return error
    return json.JSONDecodeError(error.msg, window.text, window.position)


def _checked(element: object, piece: str, number: int) -> Mapping[str, Any] | RowError:
    if not isinstance(element, dict):
        return RowError(number, f"it is a JSON {type(element).__name__}, not an object.", None, how_to_name(element))
    if is_too_deep(element, opening=piece.count("[") + piece.count("{")):
        return RowError(number, f"it is nested deeper than {MAX_DEPTH} levels.", None, "Flatten it.")
    if has_too_many_parts(piece):
        return RowError(number, "it holds too many lists and objects.", None, "Shorten it.")
    if len(element) > MAX_KEYS:
        problem = f"it has {len(element):,} columns, and {MAX_KEYS:,} are the most."
        return RowError(number, problem, None, "Nest what is not a column.")
    if (key := repeated_key(element, piece)) is not None:
        return RowError(number, f"it {said_twice(key)}", None, TWICE_FIX)
    if _SURROGATE.search(piece):
        try:
            orjson.loads(piece)
        except orjson.JSONDecodeError as error:
            return RowError(number, f"it is not valid JSON: {error}.", None, "Remove the half of a surrogate pair.")
    return element
