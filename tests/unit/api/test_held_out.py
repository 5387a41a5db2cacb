"""Losses over different held-out rows carry different letters, whatever a list is sorted by."""

import pytest

from api.dashboard.held_out import are_comparable, loss_marks
from core.jobs.models import Job


def job(name: str, sha256: str | None, valid_loss: float | None = 1.0) -> Job:
    held_out = {"rows": 30, "scored_tokens": 400, "sha256": sha256} if sha256 else None
    return Job(id=name, held_out=held_out, valid_loss=valid_loss)


def test_losses_over_the_same_rows_need_no_letters() -> None:
    assert loss_marks([job("a", "one"), job("b", "one"), job("c", "two", valid_loss=None)]) == {}


@pytest.mark.parametrize("order", [1, -1])
def test_other_rows_have_another_letter_in_any_order(order: int) -> None:
    jobs = [job("a", "two"), job("b", "one"), job("c", "two"), job("d", None)]
    marks = loss_marks(jobs[::order])
    assert marks["a"] == marks["c"]
    assert len({marks["a"], marks["b"], marks["d"]}) == 3
    assert marks == loss_marks(jobs)


def test_what_is_not_known_compares_with_nothing() -> None:
    assert are_comparable(job("a", "one"), job("b", "one"))
    assert not are_comparable(job("a", "one"), job("b", "two"))
    assert not are_comparable(job("a", None), job("b", None))
