"""What is wrong with one row."""

from core.errors import InvalidDatasetError

__all__ = ["RowError"]


class RowError(InvalidDatasetError):
    """Raised when one row cannot become an example. `problem` says why, `fix` what to change."""

    def __init__(self, row: int, problem: str, param: str | None = None, fix: str = "", *, code: str | None = None):
        super().__init__(f"Row {row}: {problem} {fix}".rstrip(), code=code, param=param)
        self.row, self.problem, self.fix = row, problem, fix

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_row_error, (self.row, self.problem, self.param, self.fix, self.code)


def _rebuild_row_error(row: int, problem: str, param: str | None, fix: str, code: str) -> RowError:
    return RowError(row, problem, param, fix, code=code)
