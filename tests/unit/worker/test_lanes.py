"""Work of a kind is done a few pieces at once, of which no organization gets the last."""

from collections import deque
from threading import Condition

from tests.waiting import PATIENCE_SECONDS
from worker.lanes import Lane


class Pieces:
    """Work that waits, by organization, and goes on once it is let go."""

    def __init__(self, *owners: str) -> None:
        self._waiting, self._changed = deque(owners), Condition()
        self.begun: list[str] = []
        self._busy: list[str] = []
        self._may_end = 0

    def add(self, owner: str) -> None:
        with self._changed:
            self._waiting.append(owner)

    def next(self, only_idle: bool) -> bool:
        """As `claims.claim_next`."""
        with self._changed:
            owner = next((one for one in self._waiting if not (only_idle and one in self._busy)), None)
            if owner is None:
                return False
            self._waiting.remove(owner)
            self.begun.append(owner)
            self._busy.append(owner)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._may_end > 0, PATIENCE_SECONDS)
            self._may_end -= 1
            self._busy.remove(owner)
        return True

    def let_end(self, count: int) -> None:
        with self._changed:
            self._may_end += count
            self._changed.notify_all()

    def until_begun(self, count: int) -> list[str]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, PATIENCE_SECONDS)
            return list(self.begun)


def test_the_last_thread_is_for_who_has_none() -> None:
    pieces = Pieces(*"aaaaa")
    lane = Lane("tests", pieces.next, at_once=3)
    for _ in range(3):
        lane.nudge()
    assert pieces.until_begun(2) == ["a", "a"]
    pieces.add("b")
    lane.nudge()
    assert pieces.until_begun(3) == ["a", "a", "b"]
    pieces.let_end(6)
    assert sorted(pieces.until_begun(6)) == ["a"] * 5 + ["b"]
    lane.stop()
    lane.wait(PATIENCE_SECONDS)


def test_a_lane_of_one_thread_serves_everybody() -> None:
    pieces = Pieces("a", "a", "b")
    lane = Lane("tests", pieces.next, at_once=1)
    pieces.let_end(3)
    lane.nudge()
    assert pieces.until_begun(3) == ["a", "a", "b"]
    lane.stop()
    lane.wait(PATIENCE_SECONDS)
