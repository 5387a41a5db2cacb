"""Places for what lasts as long as a client likes: uploads and event streams, shared among organizations."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.errors import LimitReachedError, RateLimitError, SlowRequestError

UPLOADS_AT_ONCE, UPLOADS_OF_ONE, UPLOADS_WAITING_OF_ONE = 32, 8, 32
SLOWEST_BYTES_PER_SECOND = 64 * 1024  # while others wait for a place
FIRST_SECONDS = 5.0  # for which an upload may be slow in any case
LOOK_EVERY_SECONDS = 1.0  # whether one has become too slow: time brings no event


class Place:
    """An upload's place. While its client sends nothing, it can be taken away."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._started = time.monotonic()
        self._received_bytes = 0
        self._receiving: asyncio.Timeout | None = None
        self._is_lost = False

    @property
    def bytes_per_second(self) -> float:
        """How fast the client sends; infinite while that cannot be said yet."""
        seconds = time.monotonic() - self._started
        return self._received_bytes / seconds if seconds > FIRST_SECONDS else float("inf")

    def take_away(self) -> None:
        """End the upload, now if it waits for its client. Several that wait may want the same place."""
        if self._is_lost:
            return
        self._is_lost = True
        if self._receiving is not None:
            self._receiving.reschedule(asyncio.get_running_loop().time())

    async def watch(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body as it comes. Raises SlowRequestError once the place is taken away."""
        while not self._is_lost:
            try:
                async with asyncio.timeout(None) as self._receiving:
                    chunk = await anext(body)
            except StopAsyncIteration:
                return
            except TimeoutError:
                break
            finally:
                self._receiving = None
            self._received_bytes += len(chunk)
            yield chunk
        raise SlowRequestError(
            f"{self._received_bytes:,} bytes came, slower than {SLOWEST_BYTES_PER_SECOND:,} a second, while others "
            "wait to upload. Send it again over a faster connection, or when there is less to do."
        )


class UploadPlaces:
    """A few uploads at once, so many of each organization. Those that wait take the places of the slowest."""

    def __init__(self, places: int = UPLOADS_AT_ONCE, each: int = UPLOADS_OF_ONE) -> None:
        self._places, self._each = places, each
        self._held: list[Place] = []
        self._waiting: list[tuple[str, asyncio.Future[Place]]] = []

    @asynccontextmanager
    async def hold(self, owner: str) -> AsyncIterator[Place]:
        """A place for as long as the block runs. Raises RateLimitError where too many of the owner's wait."""
        if sum(waiting == owner for waiting, _ in self._waiting) >= UPLOADS_WAITING_OF_ONE:
            raise RateLimitError(
                f"{UPLOADS_WAITING_OF_ONE} uploads of this organization wait already. Try again when some are done.",
                code="too_many_at_once",
                retry_after_seconds=5,
            )
        ticket = (owner, asyncio.get_running_loop().create_future())
        self._waiting.append(ticket)
        self._give_out()
        try:
            while not ticket[1].done():
                self._make_room(owner)
                await asyncio.wait([ticket[1]], timeout=LOOK_EVERY_SECONDS)
            yield ticket[1].result()
        finally:
            if ticket[1].done():
                self._held.remove(ticket[1].result())
            else:
                self._waiting.remove(ticket)
            self._give_out()

    def _give_out(self) -> None:
        held = Counter(place.owner for place in self._held)
        while len(self._held) < self._places:
            able = [ticket for ticket in self._waiting if held[ticket[0]] < self._each]
            ticket = min(able, key=lambda one: held[one[0]], default=None)
            if ticket is None:
                return
            self._waiting.remove(ticket)
            place = Place(ticket[0])
            self._held.append(place)
            held[ticket[0]] += 1
            ticket[1].set_result(place)

    def _make_room(self, owner: str) -> None:
        """Take the slowest upload's place for one that waits; where the owner has all it may have, its own slowest."""
        own = [place for place in self._held if place.owner == owner]
        slowest = min(own if len(own) >= self._each else self._held, key=lambda one: one.bytes_per_second, default=None)
        if slowest is not None and slowest.bytes_per_second < SLOWEST_BYTES_PER_SECOND:
            slowest.take_away()


class StreamPlaces:
    """Event streams that are open, counted. Each keeps a connection of the client's and one of the broker's."""

    def __init__(self, each: int, in_all: int) -> None:
        self._each, self._in_all = each, in_all
        self._open: Counter[str] = Counter()

    def take(self, owner: str) -> None:
        """Count one more. Raises LimitReachedError where the owner, or all together, have as many as they may."""
        if self._open[owner] >= self._each or self._open.total() >= self._in_all:
            raise LimitReachedError(
                f"{self._open[owner]:,} event streams of this organization are open, of {self._each:,} it may have, "
                f"and {self._open.total():,} in all, of {self._in_all:,}. Close some, or list the events instead.",
                code="event_streams_limit",
            )
        self._open[owner] += 1

    def give_back(self, owner: str) -> None:
        """Count one less."""
        self._open[owner] -= 1
        if not self._open[owner]:
            del self._open[owner]
