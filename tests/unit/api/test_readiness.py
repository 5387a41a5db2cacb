"""Parts of the service that hang are said to, and cost one thread each."""

import threading

from structlog.testing import capture_logs

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
    while part.begin()() is not None or len(asked) == 1:  # the answer of the hung question, then a new one's
        pass


def test_a_part_says_what_is_wrong_and_gets_well() -> None:
    answers = iter([OSError("gone"), None])

    def ask() -> None:
        if (answer := next(answers)) is not None:
            raise answer

    part = Part("broker", ask, OSError)
    assert part.begin()() == "the broker does not answer (OSError)"
    assert part.begin()() is None


def test_the_log_says_a_parts_trouble_once_for_each_change_and_not_at_each_question() -> None:
    refused, wrong = OSError("refused on 10.0.0.7"), "the schema is of another release"
    answers = iter([None, refused, refused, refused, wrong, wrong, None, None])

    def ask() -> str | None:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    part = Part("database", ask, OSError)
    with capture_logs() as lines:
        for _ in range(8):
            part.begin()()
    said = [(line["event"], line["part"], line.get("cause")) for line in lines]
    assert said == [
        ("part_not_ready", "database", "refused on 10.0.0.7"),
        ("part_not_ready", "database", wrong),
        ("part_ready_again", "database", None),
    ]
