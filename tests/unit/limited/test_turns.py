"""Places are shared among owners: whoever asks for much waits for what is their own."""

from collections.abc import Callable
from threading import Event, Thread

import pytest

from core.errors import RateLimitError
from core.limited import Turns
from tests.waiting import wait_for


def turns(places: int = 3, patience_seconds: float = 60.0) -> Turns:
    return Turns(places, waiting_each=3, waiting=5, patience_seconds=patience_seconds)


def waiting(shared: Turns, owner: str, order: list[str], leave: Callable[[], object]) -> Thread:
    """Someone who waits for a turn, notes that it came, and holds it until told to leave."""
    before = len(shared._waiting)

    def take() -> None:
        with shared.turn(owner):
            order.append(owner)
            leave()

    thread = Thread(target=take)
    thread.start()
    wait_for(lambda: len(shared._waiting) > before or owner in order, what="the turn or the wait for it")
    return thread


def test_one_owner_never_has_the_last_place() -> None:
    shared, order, leave = turns(), [], Event()
    with shared.turn("a"), shared.turn("a"):
        third = waiting(shared, "a", order, leave.wait)
        with shared.turn("b"):
            assert order == []
        leave.set()
    third.join()
    assert order == ["a"]


def test_who_holds_less_goes_first() -> None:
    shared, order, leave = turns(), [], Event()
    with shared.turn("a"), shared.turn("b"):
        with shared.turn("a"):
            threads = [waiting(shared, owner, order, leave.wait) for owner in ("a", "c")]
        wait_for(lambda: order, what="one of them")
        assert order == ["c"]
        leave.set()
    for thread in threads:
        thread.join()
    assert order == ["c", "a"]


def test_one_too_many_is_refused_at_once_and_others_are_not() -> None:
    shared, order, leave = turns(places=1), [], Event()
    with shared.turn("x"):
        threads = [waiting(shared, "a", order, leave.wait) for _ in range(3)]
        with pytest.raises(RateLimitError, match="3 of this organization's and 0 others wait") as refused:
            shared.turn("a").__enter__()
        assert refused.value.code == "too_many_at_once"
        threads += [waiting(shared, "b", order, leave.wait) for _ in range(2)]
        with pytest.raises(RateLimitError):
            shared.turn("c").__enter__()
        leave.set()
    for thread in threads:
        thread.join()
    assert len(order) == 5


def test_patience_ends() -> None:
    shared = turns(places=1, patience_seconds=0.01)
    with shared.turn("a"), pytest.raises(RateLimitError, match="waited"):
        shared.turn("b").__enter__()
    with shared.turn("b"):
        assert shared._held == {"b": 1}
    assert shared._held == {}
