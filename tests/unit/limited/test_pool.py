"""Children of a pool are kept from call to call, and replaced after an error of their own."""

from threading import Thread

import pytest

from core.errors import InvalidDatasetError, ServiceUnavailableError, TunewrightError
from core.limited import ChildDiedError, ChildPool, LimitExceededError
from tests.unit.limited import jobs
from tests.waiting import wait_for


@pytest.fixture
def pool():
    pool = ChildPool()
    yield pool
    pool.close()


def test_a_child_is_kept_and_replaced_after_it_died(pool: ChildPool) -> None:
    assert pool.call(jobs.double, 21) == 42
    [(first, _)] = pool._idle
    with pytest.raises(InvalidDatasetError):
        pool.call(jobs.broken_row)
    assert pool.call(jobs.double, 1) == 2
    assert [child for child, _ in pool._idle] == [first]
    with pytest.raises((ChildDiedError, LimitExceededError)):
        pool.call(jobs.bug)
    assert pool._idle == []
    assert pool.call(jobs.double, 2) == 4


def test_closing_ends_what_is_being_done(pool: ChildPool) -> None:
    said: list[TunewrightError] = []

    def wait_in_child() -> None:
        try:
            pool.call(jobs.sleep)
        except ServiceUnavailableError as error:
            said.append(error)

    thread = Thread(target=wait_in_child)
    thread.start()
    wait_for(lambda: pool._busy, what="the call")
    pool.close()
    thread.join()
    assert len(said) == 1
    with pytest.raises(ServiceUnavailableError):
        pool.call(jobs.double, 1)
