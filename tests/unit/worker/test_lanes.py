"""Work of a kind is done a few pieces at once, of which no organization gets the last."""

from collections import deque
from dataclasses import dataclass
from threading import Condition

from core.limited import Shares
from tests.waiting import PATIENCE_SECONDS
from worker.lanes import Lane


@dataclass(frozen=True)
class Piece:
    """Some work of an organization."""

    organization_id: str


class Pieces:
    """Work that waits, by organization, and goes on once it is let go."""

    def __init__(self, shares: Shares, *owners: str) -> None:
        self._shares = shares
        self._waiting, self._changed = deque(owners), Condition()
        self.begun: list[str] = []
        self._may_end = 0

    def add(self, owner: str) -> None:
        with self._changed:
            self._waiting.append(owner)

    def work_next(self) -> bool:
        with self._shares.next(self._claim) as piece:
            if piece is None:
                return False
            with self._changed:
                self.begun.append(piece.organization_id)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._may_end > 0, PATIENCE_SECONDS)
                self._may_end -= 1
        return True

    def _claim(self, passed_over: frozenset[str]) -> Piece | None:
        with self._changed:
            owner = next((one for one in self._waiting if one not in passed_over), None)
            if owner is None:
                return None
            self._waiting.remove(owner)
            return Piece(owner)

    def let_end(self, count: int) -> None:
        with self._changed:
            self._may_end += count
            self._changed.notify_all()

    def until_begun(self, count: int) -> list[str]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, PATIENCE_SECONDS)
            return list(self.begun)


def test_the_last_thread_is_for_another() -> None:
    pieces = Pieces(Shares(2), *"aaaaa")
    lane = Lane("tests", pieces.work_next, at_once=3)
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
    pieces = Pieces(Shares(1), "a", "a", "b")
    lane = Lane("tests", pieces.work_next, at_once=1)
    pieces.let_end(3)
    lane.nudge()
    assert pieces.until_begun(3) == ["a", "a", "b"]
    lane.stop()
    lane.wait(PATIENCE_SECONDS)
