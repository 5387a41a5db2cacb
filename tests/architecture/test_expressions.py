"""Every regular expression takes time in proportion to its text, whatever the text: one request must not stop all."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.architecture.expressions import Expression, expressions, pumps

# A quadratic expression needs some 20 s of CPU time for so much text, a linear one some milliseconds: what is between
# them is not for a busy machine to say.
CHARACTERS = 65_536
CPU_SECONDS = 1.0


class TooSlowError(Exception):
    """Raised in the middle of a match."""


@contextmanager
def limited() -> Iterator[None]:
    """Ends what takes more CPU time than a linear expression can; `re` looks for signals while it matches."""

    def end(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def slow_text(expression: Expression) -> str | None:
    """The beginning of a text that the expression is slow on; None where there is none."""
    for start, pump in pumps(expression.pattern):
        text = start + pump * (CHARACTERS // len(pump)) + "\0"
        subject = text.encode("utf-8", "replace") if isinstance(expression.pattern.pattern, bytes) else text
        try:
            with limited():
                if not expression.is_anchored:
                    for _ in expression.pattern.finditer(subject):
                        pass
                expression.pattern.match(subject)
                expression.pattern.fullmatch(subject)
        except TooSlowError:
            return text[:80]
    return None


@pytest.mark.parametrize("expression", expressions(), ids=str)
def test_an_expression_is_linear(expression: Expression) -> None:
    assert slow_text(expression) is None


@pytest.mark.parametrize(
    "pattern",
    [r"(\w+://[^\s:/@]*:)[^\s@/]+@", r"\s+$", r"(a+)+b", r"(?:x|xy|y)*z", r"<.*?>x"],
)
def test_expressions_that_are_not_linear_are_found(pattern: str) -> None:
    assert slow_text(Expression("here", re.compile(pattern), is_anchored=False)) is not None


def test_the_project_has_expressions() -> None:
    found = {str(expression).partition(":")[0] for expression in expressions()}
    assert {"core/logging.py", "core/registry/base_models.py", "planner/devices.py"} <= found
