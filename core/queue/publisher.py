"""Sending messages: Celery for nudges, Redis publish for wake-ups. A broker that is away loses nothing but time."""

from collections.abc import Sequence
from typing import Any, Final

from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from redis import Redis
from redis.exceptions import RedisError

from core.outage_log import OutageLog
from core.queue.messages import Message, Nudge

TIMEOUTS: Final[dict[str, Any]] = {"socket_timeout": 5, "socket_connect_timeout": 5}  # of a broker that hangs


def celery_client(redis_url: str) -> Celery:
    """A Celery application that can send tasks by name but knows none. Accepts JSON only."""
    app = Celery("tunewright", broker=redis_url)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        result_backend=None,
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        broker_channel_error_retry=True,  # a broker whose disk is full answers, with an error: it is waited for
        broker_connection_max_retries=None,  # for as long as it takes: jobs run on without it
        broker_transport_options=TIMEOUTS,
    )
    return app


class QueuePublisher:
    """The `Publisher` of a real process. What cannot be sent now is sent by the sweep later."""

    def __init__(self, redis_url: str) -> None:
        self._celery = celery_client(redis_url)
        # A request must not wait while Celery tries again and again to reach a broker that is away.
        self._celery.conf.broker_transport_options = {**TIMEOUTS, "max_retries": 1, "interval_start": 0}
        self._outage = OutageLog("messages_not_sent", "messages_sent_again")
        self._redis = Redis.from_url(redis_url, **TIMEOUTS)

    def __call__(self, messages: Sequence[Message]) -> None:
        """Send every message; log when the broker begins to take none, and when it takes them again."""
        for message in messages:
            try:
                if isinstance(message, Nudge):
                    self._celery.send_task(message.task, args=[message.argument], queue=message.queue, retry=False)
                else:
                    self._redis.publish(message.channel, b"1")
            except (BrokerError, RedisError) as error:
                self._outage.away(error)
            else:
                self._outage.back()

    def ping(self) -> None:
        """Raise `RedisError` where the broker does not answer."""
        self._redis.ping()

    def depth(self, queue: str) -> int:
        """Messages waiting in a queue. Raises `RedisError` where the broker does not answer."""
        return int(self._redis.llen(queue))

    def close(self) -> None:
        """Give all connections back."""
        self._celery.close()
        self._redis.close()
