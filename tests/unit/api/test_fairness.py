"""Each caller has its share of the process, and who ignores a refusal's time is kept waiting for it."""

import asyncio
import math
from contextlib import suppress
from itertools import pairwise

import pytest
from starlette.types import Message, Receive, Scope, Send

from api import fairness
from api.fairness import (
    BETWEEN_SECONDS,
    LONGEST_WAIT_SECONDS,
    REFUSED_OFTEN,
    WAITING_OF_ONE,
    WORKING_OF_ONE,
    Callers,
    FairnessMiddleware,
    Refusals,
    RequestPlaces,
)
from core.errors import RateLimitError

WHAT = ("org-a", "/v1/files")


def test_a_caller_with_many_requests_keeps_no_other_waiting() -> None:
    async def run() -> None:
        places, begun, go_on = RequestPlaces(), list[str](), asyncio.Event()

        async def ask(caller: str) -> None:
            async with places.hold(caller):
                begun.append(caller)
                await go_on.wait()

        many = [asyncio.create_task(ask("a")) for _ in range(20)]
        await asyncio.sleep(0)
        other = asyncio.create_task(ask("b"))
        await asyncio.sleep(0)
        assert begun == ["a"] * WORKING_OF_ONE + ["b"]
        go_on.set()
        await asyncio.gather(*many, other)
        assert begun.count("a") == 20
        assert places._lines == {}

    asyncio.run(run())


def test_a_request_that_waits_for_something_else_gives_its_place_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "WORKING_SECONDS", 0.01)

    async def run() -> None:
        places, begun = RequestPlaces(), asyncio.Queue[int]()

        async def ask(number: int) -> None:
            async with places.hold("a", most_unanswered=5):
                begun.put_nowait(number)
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(ask(number)) for number in range(9)]
        assert [await asyncio.wait_for(begun.get(), 30) for _ in range(5)] == [0, 1, 2, 3, 4]
        await asyncio.sleep(0.05)
        assert begun.empty()  # the others would hold more threads than one organization may
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert places._lines == {}

    asyncio.run(run())


def test_a_line_has_an_end() -> None:
    async def run() -> None:
        places = RequestPlaces()

        async def ask() -> None:
            async with places.hold("a", most_unanswered=math.inf):
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(ask()) for _ in range(WAITING_OF_ONE + WORKING_OF_ONE)]
        await asyncio.sleep(0)
        with pytest.raises(RateLimitError, match=f"{WAITING_OF_ONE} requests of this caller wait already"):
            await ask()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_who_comes_back_in_time_is_not_kept_waiting() -> None:
    refusals = Refusals()
    for number in range(100):
        assert refusals.wait_seconds(WHAT, 2.0 * number) == 0
        refusals.note(WHAT, 2.0, 2.0 * number)


def test_a_few_refusals_are_nothing_and_a_success_ends_them() -> None:
    refusals = Refusals()
    for _ in range(3):
        for _ in range(REFUSED_OFTEN - 1):
            refusals.note(WHAT, 2.0, 0.0)
            assert refusals.wait_seconds(WHAT, 0.1) == 0
        refusals.note(WHAT, None, 0.1)


def test_who_ignores_the_time_waits_for_it_and_goes_on_one_at_a_time() -> None:
    refusals = Refusals()
    for _ in range(REFUSED_OFTEN):
        refusals.note(WHAT, 2.0, 0.0)
    waits = [refusals.wait_seconds(WHAT, 0.5) for _ in range(45)]
    assert waits[0] == 1.5
    assert all(abs(later - earlier - BETWEEN_SECONDS) < 1e-9 for earlier, later in pairwise(waits[:35]))
    assert all(wait > LONGEST_WAIT_SECONDS for wait in waits[36:])  # these are refused after a while, unasked
    assert refusals.wait_seconds(("org-b", "/v1/files"), 0.5) == 0
    assert refusals.wait_seconds(("org-a", "/v1/models"), 0.5) == 0
    assert refusals.wait_seconds(WHAT, 2.0) == 0


def test_a_caller_that_ignores_refusals_costs_the_application_few_requests() -> None:
    """45 clients that ask again at once; without the line the application would see thousands of requests."""
    asked = 0

    async def refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        await send({"type": "http.response.start", "status": 429, "headers": [(b"retry-after", b"2")]})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def run() -> int:
        callers = Callers()
        middleware = FairnessMiddleware(refuse, callers)
        head = {"type": "http", "method": "GET", "path": "/v1/files/x/inspection", "client": ("10.0.0.1", 1)}
        scope: Scope = {**head, "headers": [(b"authorization", b"Bearer tw-x")]}
        credential = fairness.credential_of(scope)
        assert credential is not None
        callers.know(credential, "org-a")
        answered = 0

        async def send(message: Message) -> None:
            nonlocal answered
            answered += message["type"] == "http.response.start"

        async def client() -> None:
            while True:
                await middleware(dict(scope), receive, send)

        with suppress(TimeoutError):
            async with asyncio.timeout(1.0), asyncio.TaskGroup() as group:
                for _ in range(45):
                    group.create_task(client())
        return answered

    assert asyncio.run(run()) < 45 + 1.0 / BETWEEN_SECONDS + REFUSED_OFTEN + WORKING_OF_ONE
    assert asked < 45


def test_who_sends_a_body_slowly_keeps_nobody_waiting() -> None:
    async def run() -> None:
        begun = list[str]()

        async def application(scope: Scope, receive: Receive, _send: Send) -> None:
            while scope["method"] == "POST" and (await receive())["more_body"]:
                pass
            begun.append(scope["method"])

        middleware = FairnessMiddleware(application, Callers())
        head = {"type": "http", "path": "/v1/plans", "client": ("10.0.0.1", 1)}

        async def send(_message: Message) -> None:
            raise AssertionError("nothing is answered")

        async def ask(method: str, *parts: bytes, is_whole: bool) -> None:
            messages = iter(parts)

            async def receive() -> Message:
                part = next(messages, None)
                if part is None:
                    await asyncio.Event().wait()
                return {"type": "http.request", "body": part, "more_body": not (is_whole and part == parts[-1])}

            headers = [(b"content-length", b"9")] if parts else []
            await middleware({**head, "method": method, "headers": headers}, receive, send)

        slow = [asyncio.create_task(ask("POST", b"x", is_whole=False)) for _ in range(50)]
        await asyncio.sleep(0)
        await asyncio.wait_for(ask("GET", is_whole=True), 30)
        await asyncio.wait_for(ask("POST", b"x", b"y", is_whole=True), 30)
        assert begun == ["GET", "POST"]
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert middleware._places._lines == {}

    asyncio.run(run())


def test_keys_and_sessions_tell_callers_apart() -> None:
    def shown(**headers: str) -> str | None:
        return fairness.credential_of(
            {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
        )

    assert shown() is None
    assert shown(cookie="theme=dark") is None
    assert shown(cookie="theme=dark; tunewright_session=s") == shown(cookie="tunewright_session=s")
    assert (
        len({shown(authorization="Bearer a"), shown(authorization="Bearer b"), shown(cookie="tunewright_session=s")})
        == 3
    )
