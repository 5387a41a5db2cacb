"""Why a plan is what it is, as data: sentences are made of it where people read them (planner/wording.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = bool | int | float | str | tuple["Reason", ...]


@dataclass(frozen=True)
class Reason:
    """A decision, or a part of one. `values`: what a sentence about it names; parts of the decision are reasons too.

    `code` names its sentence; it stays what it is when the words change.
    """

    code: str
    values: Mapping[str, Value] = field(default_factory=dict)


def reason(code: str, **values: Value) -> Reason:
    """A reason with these values."""
    return Reason(code, values)


Said = Reason | str  # a plan of an earlier release has the sentence itself
