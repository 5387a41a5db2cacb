"""Rates and the counters behind them.

The counters live in Redis, so that all API processes count together. While it is away each process counts alone:
a service that cannot count still answers, and guessing is still slowed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import structlog
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis.exceptions import RedisError

from core.errors import RateLimitError
from core.outage_log import OutageLog

MINUTE, HOUR = 60, 3600
AWAY_SECONDS = 10.0  # how long a broker that did not answer is left alone

Answer = TypeVar("Answer")

log = structlog.get_logger()


@dataclass(frozen=True)
class Rate:
    """So many times in so many seconds, for each identity. `amount` 0 means any number of times."""

    name: str  # what is counted, as a refusal says it: "requests of this API key"
    amount: int
    per_seconds: int

    @property
    def item(self) -> RateLimitItem:
        """As the library counts it."""
        return RateLimitItemPerSecond(self.amount, self.per_seconds, namespace=self.name.replace(" ", "-"))


@dataclass(frozen=True)
class Allowance:
    """What is left of a rate in this window."""

    limit: int
    remaining: int
    reset_seconds: int  # until it is whole again


class Throttle:
    """Counts against rates. Safe to use from many threads."""

    def __init__(self, redis_url: str) -> None:
        storage = RedisStorage(redis_url, key_prefix="tunewright", socket_timeout=1, socket_connect_timeout=1)
        self._shared = FixedWindowRateLimiter(storage)
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._away_until = 0.0
        self._outage = OutageLog("rates_counted_alone", "rates_counted_together")

    def take(self, rate: Rate, identity: str) -> Allowance | None:
        """Count once more; None where the rate is unlimited. Raises RateLimitError above the rate."""
        if rate.amount == 0:
            return None
        item = rate.item

        def count(counters: FixedWindowRateLimiter) -> tuple[bool, Allowance]:
            return counters.hit(item, identity), _allowance(counters, item, rate, identity)

        within, allowance = self._on_shared_or_own(count)
        if not within:
            raise _too_often(rate, allowance)
        return allowance

    def check(self, rate: Rate, identity: str) -> None:
        """Raise RateLimitError where nothing is left of the rate, without counting."""
        if rate.amount == 0:
            return
        allowance = self._on_shared_or_own(lambda counters: _allowance(counters, rate.item, rate, identity))
        if allowance.remaining <= 0:
            raise _too_often(rate, allowance)

    @contextmanager
    def failures(self, error: type[Exception], *counted: tuple[Rate, str]) -> Iterator[None]:
        """Do what is inside only while each rate has something left, and count it against each if it raises `error`."""
        for rate, identity in counted:
            self.check(rate, identity)
        try:
            yield
        except error:
            for rate, identity in counted:
                self.take(rate, identity)
            raise

    def _on_shared_or_own(self, ask: Callable[[FixedWindowRateLimiter], Answer]) -> Answer:
        if time.monotonic() >= self._away_until:
            try:
                answer = ask(self._shared)
            except RedisError as error:
                self._away_until = time.monotonic() + AWAY_SECONDS
                self._outage.away(error)
            else:
                self._outage.back()
                return answer
        return ask(self._own)


def _allowance(counters: FixedWindowRateLimiter, item: RateLimitItem, rate: Rate, identity: str) -> Allowance:
    window = counters.get_window_stats(item, identity)
    return Allowance(rate.amount, max(0, window.remaining), max(1, round(window.reset_time - time.time())))


def _too_often(rate: Rate, allowance: Allowance) -> RateLimitError:
    log.warning("rate_limited", rate=rate.name, limit=rate.amount, per_seconds=rate.per_seconds)
    return RateLimitError(
        f"More than {rate.amount:,} {rate.name} in {rate.per_seconds:,} seconds. "
        f"Try again in {allowance.reset_seconds:,} seconds.",
        retry_after_seconds=allowance.reset_seconds,
    )
