"""What met a limit is refused at once when it is asked again soon."""

import pytest

from core.errors import InvalidModelError
from core.limited import Refusals, refusals


def test_a_refusal_is_remembered_for_what_it_was_found_in(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Refusals("too_demanding")
    asked: list[str] = []

    def refuse(key: str, code: str) -> None:
        with known.remembered(key):
            asked.append(key)
            raise InvalidModelError(f"no {key}", code=code, param="model")

    def ask(key: str, code: str) -> str:
        with pytest.raises(InvalidModelError) as caught:
            refuse(key, code)
        assert (caught.value.code, caught.value.param) == (code, "model")
        return caught.value.message

    assert [ask("a", "too_demanding") for _ in range(2)] == ["no a"] * 2
    assert [ask("b", "other_problem") for _ in range(2)] == ["no b"] * 2
    assert asked == ["a", "b", "b"]
    with known.remembered("c"):
        pass
    monkeypatch.setattr(refusals, "REMEMBERED_SECONDS", -1.0)
    ask("a", "too_demanding")
    assert asked == ["a", "b", "b", "a"]


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MOST_REMEMBERED", 2)
    known = Refusals("too_demanding")
    for key in "abc":
        with pytest.raises(InvalidModelError), known.remembered(key):
            raise InvalidModelError(key, code="too_demanding")
    known.check("a")
    with pytest.raises(InvalidModelError):
        known.check("c")
