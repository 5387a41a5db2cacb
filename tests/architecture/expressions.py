"""The regular expressions of the project's own Python files, and texts made from each that would make it slow."""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from tests.architecture.sources import PACKAGES, ROOT, python_files, shown, tree_of

FUNCTIONS = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}
WHOLE = {"match", "fullmatch"}  # tried at one place only: the others try from every character on
COMPOSED = {"core/datasets/noticing.py"}  # of escaped texts, one or the other: nothing is repeated in it
_MOST_PUMPS = 40
_CLASSES = {
    "CATEGORY_DIGIT": "7",
    "CATEGORY_NOT_DIGIT": "x",
    "CATEGORY_SPACE": " ",
    "CATEGORY_NOT_SPACE": "x",
    "CATEGORY_WORD": "x",
    "CATEGORY_NOT_WORD": "-",
}
_TRIED = "aA7 \n_-.,:;/@\"'\\{}[]()<>=%&?é\0"


# Made at run time of escaped texts alone, one or the other of them: linear whatever they are.
LITERALS = {"re.compile('|'.join(tokens))"}


@dataclass(frozen=True)
class Expression:
    """A regular expression and where it is."""

    where: str
    pattern: re.Pattern[Any]
    is_anchored: bool  # never looked for inside a text

    def __str__(self) -> str:
        return self.where


def expressions() -> list[Expression]:
    """Every one of the packages', by file and line."""
    return [found for path in python_files(*PACKAGES) for found in _of(path)]


def _of(path: Path) -> Iterator[Expression]:
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = node.func
        if ast.unparse(node) in LITERALS:
            continue
        if isinstance(called.value, ast.Name) and called.value.id == "re" and called.attr in FUNCTIONS:
            if shown(path) in COMPOSED and not isinstance(node.args[0], ast.Constant):
                continue
            source = _value(path, node.args[0])
            flags = _value(path, node.args[1]) if called.attr == "compile" and len(node.args) > 1 else 0
            used = _uses(_name_of(path, node)) if called.attr == "compile" else {called.attr}
            yield Expression(f"{shown(path)}:{node.lineno}", re.compile(source, flags), bool(used) and used <= WHOLE)


def _value(path: Path, node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return eval(compile(ast.Expression(node), str(path), "eval"), dict(vars(module)))


def _name_of(path: Path, call: ast.Call) -> str:
    """The constant that a compiled expression is kept as."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Assign) and node.value is call and isinstance(node.targets[0], ast.Name):
            return node.targets[0].id
    return ""


@cache
def _methods() -> dict[str, set[str]]:
    """What is called on each name in all files."""
    called: dict[str, set[str]] = {}
    for path in python_files(*PACKAGES):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
                called.setdefault(owner, set()).add(node.attr)
    return called


def _uses(name: str) -> set[str]:
    return _methods().get(name, set()) & FUNCTIONS


def pumps(pattern: re.Pattern[Any]) -> list[tuple[str, str]]:
    """Beginnings and what to repeat behind them: texts that each part of the expression goes through again and again.

    Whatever slows an expression down repeats what one of its parts accepts, alone or beside what another accepts.
    """
    text = pattern.pattern.decode("latin-1") if isinstance(pattern.pattern, bytes) else pattern.pattern
    tree = _parser.parse(text, pattern.flags & ~(re.UNICODE if isinstance(pattern.pattern, bytes) else 0))
    pieces = list(dict.fromkeys(piece for piece in _pieces(tree) if piece))
    pairs = ["".join(pair) for pair in permutations(pieces, 2)]
    repeated = list(dict.fromkeys(pieces + pairs))[:_MOST_PUMPS]
    whole = _sample(tree)
    beginnings = list(dict.fromkeys(["", whole[: len(whole) // 2], whole]))
    return [(start, pump) for pump in repeated for start in beginnings]


def _pieces(tree: Any) -> Iterator[str]:
    """What each part of the expression accepts, parts of parts too."""
    for operation, argument in tree:
        yield _sample([(operation, argument)])
        for part in _parts(operation, argument):
            yield from _pieces(part)


def _parts(operation: Any, argument: Any) -> Iterator[Any]:
    match str(operation):
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT" | "SUBPATTERN":
            yield argument[-1]
        case "BRANCH":
            yield from argument[1]
        case "ATOMIC_GROUP":
            yield argument


def _sample(tree: Any) -> str:
    """A text that the parts accept, one behind the other."""
    return "".join(_accepted(operation, argument) for operation, argument in tree)


def _accepted(operation: Any, argument: Any) -> str:
    match str(operation):
        case "LITERAL":
            return chr(argument)
        case "NOT_LITERAL":
            return next(one for one in _TRIED if ord(one) != argument)
        case "ANY":
            return "a"
        case "IN":
            return _member(argument)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            return _sample(argument[-1]) * max(1, min(argument[0], 8))
        case "BRANCH":
            return _sample(argument[1][0])
        case "SUBPATTERN" | "ATOMIC_GROUP":
            return _sample(argument[-1] if isinstance(argument, tuple) else argument)
    return ""  # places, such as ^ and \b, take no text


def _member(choices: Any) -> str:
    negated = choices[0][0] is _constants.NEGATE
    accepting = [one for one in _TRIED if any(_holds(choice, one) for choice in choices[negated:]) != negated]
    if accepting:
        return accepting[0]
    operation, argument = choices[0]
    return chr(argument[0] if operation is _constants.RANGE else argument)


def _holds(choice: tuple[Any, Any], one: str) -> bool:
    match str(choice[0]):
        case "LITERAL":
            return ord(one) == choice[1]
        case "RANGE":
            return bool(choice[1][0] <= ord(one) <= choice[1][1])
    return _CLASSES[str(choice[1])] == one or (_CLASSES[str(choice[1])] == "x" and one == "a")
