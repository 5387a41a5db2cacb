"""What is wrong with one row."""

from core.errors import InvalidDatasetError

__all__ = ["RowError", "UnreadableRestError"]

_LONGEST = 500  # characters of each part: a row may hold megabytes where a name is expected


class RowError(InvalidDatasetError):
    """Raised when one row cannot become an example. `problem` says why, `fix` what to change.

    `excerpt`: how a row begins that could not be read at all.
    """

    excerpt = ""

    def __init__(self, row: int, problem: str, param: str | None = None, fix: str = "", *, code: str | None = None):
        problem, fix, param = _cut(problem), _cut(fix), _cut(param) if param else param
        super().__init__(f"Row {row}: {problem} {fix}".rstrip(), code=code, param=param)
        self.row, self.problem, self.fix = row, problem, fix

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_row_error, (type(self), self.row, self.problem, self.param, self.fix, self.code)


class UnreadableRestError(RowError):
    """Raised when a row is broken in such a way that no row after it can be found. It cannot be left out."""


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _rebuild_row_error(cls: type[RowError], row: int, problem: str, param: str | None, fix: str, code: str) -> RowError:
    return cls(row, problem, param, fix, code=code)
