"""Uploads share their places: an organization has some of them, and a client that hardly sends gives way."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from api import places
from api.places import Place, StreamPlaces, UploadPlaces
from core.errors import LimitReachedError, RateLimitError, SlowRequestError


async def nothing() -> AsyncIterator[bytes]:
    """A client that sends one byte, and then no more."""
    yield b"x"
    await asyncio.Event().wait()


async def upload(shared: UploadPlaces, owner: str, body: AsyncIterator[bytes], started: list[str]) -> int:
    async with shared.hold(owner) as place:
        started.append(owner)
        return sum([len(chunk) async for chunk in place.watch(body)])


async def some(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 1000


def test_an_organization_has_some_of_the_places() -> None:
    async def run() -> None:
        shared, started = UploadPlaces(places=3, each=2), list[str]()
        slow = [asyncio.create_task(upload(shared, "a", nothing(), started)) for _ in range(5)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(upload(shared, "b", some(3), started), 10) == 3000
        assert started == ["a", "a", "b"]
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert (shared._held, shared._waiting) == ([], [])

    asyncio.run(run())


def test_a_place_that_several_want_is_taken_away_once() -> None:
    async def run() -> None:
        place = Place("a")
        body = asyncio.create_task(anext(place.watch(stuck())))
        await asyncio.sleep(0)
        for _ in range(3):  # its time is up, and it has not noticed yet
            place.take_away()
            await asyncio.sleep(0)
        with pytest.raises(SlowRequestError):
            await body

    asyncio.run(run())


async def stuck() -> AsyncIterator[bytes]:
    """A client that sends nothing."""
    await asyncio.Event().wait()
    yield b""


def test_who_hardly_sends_loses_the_place_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(places, "LOOK_EVERY_SECONDS", 0.05)

    async def run() -> None:
        shared, started = UploadPlaces(places=2, each=2), list[str]()
        slow = [asyncio.create_task(upload(shared, "a", nothing(), started)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(upload(shared, "b", some(3), started), 60) == 3000
        done, _ = await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(SlowRequestError, match="1 bytes came"):
            done.pop().result()
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert (shared._held, shared._waiting) == ([], [])

    asyncio.run(run())


def test_a_place_is_kept_while_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "FIRST_SECONDS", 0.0)

    async def run() -> None:
        place = Place("a")
        assert [chunk async for chunk in place.watch(some(2))] == [b"x" * 1000] * 2
        place.take_away()
        with pytest.raises(SlowRequestError):
            await anext(place.watch(some(2)))

    asyncio.run(run())


def test_one_too_many_waits_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "UPLOADS_WAITING_OF_ONE", 1)

    async def run() -> None:
        shared = UploadPlaces(places=1, each=1)
        waiting = [asyncio.create_task(upload(shared, "a", nothing(), [])) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RateLimitError) as refused:
            await upload(shared, "a", some(1), [])
        assert refused.value.code == "too_many_at_once"
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())


def test_event_streams_are_counted_each_and_in_all() -> None:
    open_streams = StreamPlaces(each=2, in_all=3)
    for owner in ("a", "a", "b"):
        open_streams.take(owner)
    for owner in ("a", "b"):
        with pytest.raises(LimitReachedError) as refused:
            open_streams.take(owner)
        assert refused.value.code == "event_streams_limit"
    open_streams.give_back("a")
    open_streams.take("b")
