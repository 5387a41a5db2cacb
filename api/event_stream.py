"""Events as they happen. The table is the truth; a publication on Redis only says that it is worth looking again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import anyio
from anyio.to_thread import run_sync
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.errors import error_response
from api.places import StreamPlaces
from core.errors import LimitReachedError
from core.events import service as events
from core.events.models import JobEvent
from core.jobs import service as jobs
from core.outage_log import OutageLog
from core.queue.messages import job_channel
from core.queue.publisher import TIMEOUTS
from core.runtime import Runtime

BATCH = 500
QUIET_SECONDS = 15.0  # after which a comment shows proxies that the connection lives, and the table is read anyway
WITHOUT_BROKER_SECONDS = 2.0  # between looks while Redis is away

_outage = OutageLog("event_streams_without_broker", "event_streams_have_broker")  # of all streams of this process


@dataclass(frozen=True)
class Batch:
    """Events not seen yet, oldest first. `is_last`: the job is finished and these are the end of it."""

    events: Sequence[JobEvent]
    is_last: bool


def read_batch(runtime: Runtime, organization_id: str, job_id: str, last_id: str | None) -> Batch:
    """What happened after the event `last_id`. Raises NotFoundError, InvalidRequestError for a foreign id.

    The status is read before the events: a job that was finished by then can have written none since.
    """
    with runtime.database.read() as session:
        is_finished = jobs.get_job(session, organization_id, job_id).status.is_finished
        rows = events.following(session, job_id, last_id=last_id, limit=BATCH)
    return Batch(rows, is_last=is_finished and len(rows) < BATCH)


async def follow(
    runtime: Runtime, organization_id: str, job_id: str, last_id: str | None, show: Callable[[JobEvent], str]
) -> AsyncIterator[str]:
    """Server-sent events of a job until it is finished, each with its id, so that a reader can resume exactly."""
    async with _Wakes(runtime.settings.resolved_redis_url, job_channel(job_id)) as wakes:
        while True:
            batch = await run_sync(read_batch, runtime, organization_id, job_id, last_id)
            for event in batch.events:
                yield f"id: {event.id}\ndata: {show(event)}\n\n"
                last_id = event.id
            if batch.is_last:
                yield "data: [DONE]\n\n"
                return
            if len(batch.events) < BATCH and not await wakes.wait():
                # No blank line: the `openai` client takes one for the end of an event without data.
                yield ": still here\n"


class EventStream(StreamingResponse):
    """Frames as a response, which holds a place among the organization's streams as long as it is open."""

    def __init__(self, places: StreamPlaces, organization_id: str, frames: AsyncIterator[str]) -> None:
        super().__init__(frames, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._places, self._owner = places, organization_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._places.take(self._owner)
        except LimitReachedError as error:
            await error_response(error)(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._places.give_back(self._owner)


class _Wakes:
    """A subscription that degrades to looking every now and then while Redis is away."""

    def __init__(self, redis_url: str, channel: str) -> None:
        self._redis = Redis.from_url(redis_url, **TIMEOUTS)
        self._channel = channel
        self._pubsub = self._redis.pubsub()

    async def __aenter__(self) -> "_Wakes":
        await self._subscribe()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        with anyio.CancelScope(shield=True), contextlib.suppress(RedisError, OSError):
            await self._pubsub.aclose()  # type: ignore[no-untyped-call]
            await self._redis.aclose()

    async def wait(self) -> bool:
        """Return when there may be news: True for a publication, False after a quiet while.

        The confirmation of the subscription counts as news, which covers what was written before it took effect.
        """
        if self._pubsub.subscribed or await self._subscribe():
            try:
                message = await self._pubsub.get_message(timeout=QUIET_SECONDS)
            except (RedisError, OSError) as error:
                _outage.away(error)
            else:
                _outage.back()
                return message is not None
        await asyncio.sleep(WITHOUT_BROKER_SECONDS)
        return False

    async def _subscribe(self) -> bool:
        try:
            await self._pubsub.subscribe(self._channel)
        except (RedisError, OSError):
            return False
        return True
