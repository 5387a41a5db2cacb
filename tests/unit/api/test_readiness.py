"""Parts of the service that hang are said to, and cost one thread each."""

import threading

from api.readiness import Part


def test_a_part_that_hangs_is_named_in_time_and_asked_once() -> None:
    hanging, asked = threading.Event(), []

    def ask() -> None:
        asked.append(None)
        hanging.wait()

    part = Part("store", ask, OSError, limit_seconds=0.05)
    first, second = part.begin()(), part.begin()()
    assert first is not None
    assert second is not None
    assert first.startswith("the store has not answered for")
    assert len(asked) == 1
    hanging.set()
    while part.begin()() is not None:  # the answer of the hung question, then a new one's
        pass
    assert len(asked) > 1


def test_a_part_says_what_is_wrong_and_gets_well() -> None:
    answers = iter([OSError("gone"), None])

    def ask() -> None:
        if (answer := next(answers)) is not None:
            raise answer

    part = Part("broker", ask, OSError)
    assert part.begin()() == "the broker does not answer (OSError)"
    assert part.begin()() is None
