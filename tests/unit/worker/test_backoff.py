"""Waiting for what is away."""

from itertools import islice

import pytest

from core.errors import InvalidRequestError, StoreError
from worker.backoff import LONGEST_DELAY_SECONDS, delays, retry_while_away


def test_delays_grow_within_their_jitter_and_are_bounded() -> None:
    first, *_, last = islice(delays(1.0, 30.0), 20)
    assert 0.5 <= first <= 1.5
    assert 15 <= last <= 45


def test_what_comes_back_is_waited_for() -> None:
    answers = iter([StoreError("away"), StoreError("away"), "there"])
    waited: list[float] = []

    def work() -> str:
        answer = next(answers)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    assert retry_while_away(work, 60, lambda seconds: bool(waited.append(seconds))) == "there"
    assert len(waited) == 2
    assert all(seconds <= 1.5 * LONGEST_DELAY_SECONDS for seconds in waited)


def test_what_stays_away_is_given_up() -> None:
    def work() -> str:
        raise StoreError("away")

    with pytest.raises(StoreError):
        retry_while_away(work, 0.0, lambda _: False)
    with pytest.raises(StoreError):
        retry_while_away(work, 60.0, lambda _: True)


def test_other_errors_are_not_waited_for() -> None:
    def work() -> str:
        raise InvalidRequestError("no")

    with pytest.raises(InvalidRequestError):
        retry_while_away(work, 60.0, lambda _: pytest.fail("it waited"))
