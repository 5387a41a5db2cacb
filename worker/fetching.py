"""Bringing weights and stored objects to this machine, and giving that up at once when the job is to stop."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from core.artifacts.local import LocalStore
from core.artifacts.store import open_store
from core.errors import ServiceUnavailableError, TunewrightError
from core.hub_access import HubAccess
from core.limited.lifetime import end_with_parent
from core.registry.base_models import BaseModel, ModelRef
from core.runtime import Runtime
from core.settings import Settings
from worker import fork_server
from worker.base_weights import ensure_weights

POLL_SECONDS = 0.1  # a stop is obeyed within this

Result = TypeVar("Result")


class TransferStoppedError(Exception):
    """Raised when the job was to stop while something was fetched or stored for it."""


class Fetcher:
    """Fetches in this process: for those who wait to the end."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def weights(self, wanted: ModelRef, access: HubAccess) -> tuple[BaseModel, Path]:
        """See `ensure_weights`."""
        return ensure_weights(self._runtime.settings, wanted, access)

    def materialize(self, key: str, directory: Path) -> Path:
        """See `core.artifacts.store`."""
        return self._runtime.store.materialize(key, directory)


class InterruptibleFetcher(Fetcher):
    """Fetches in a child wherever that goes over a network; the child is ended as soon as `is_stopped` says so.

    Its methods also raise TransferStoppedError, and ServiceUnavailableError where the child died.
    """

    def __init__(self, runtime: Runtime, is_stopped: Callable[[], bool]) -> None:
        super().__init__(runtime)
        self._is_stopped = is_stopped

    def weights(self, wanted: ModelRef, access: HubAccess) -> tuple[BaseModel, Path]:
        """See `ensure_weights`."""
        if wanted.is_local:
            return super().weights(wanted, access)
        return self._in_child(ensure_weights, self._runtime.settings, wanted, access)

    def materialize(self, key: str, directory: Path) -> Path:
        """See `core.artifacts.store`."""
        if isinstance(self._runtime.store, LocalStore):
            return super().materialize(key, directory)
        return self._in_child(_materialize, self._runtime.settings, key, directory)

    def _in_child(self, work: Callable[..., Result], *arguments: object) -> Result:
        patience_seconds = self._runtime.settings.hang_seconds
        reader, writer = fork_server.context.Pipe(duplex=False)
        with reader:
            # The fork server has forgotten the credentials that a store and a hub may ask for.
            process = fork_server.context.Process(target=_answer, args=(writer, dict(os.environ), work, arguments))
            fork_server.start(process, patience_seconds)
            writer.close()
            try:
                while not reader.poll(POLL_SECONDS):
                    if self._is_stopped():
                        raise TransferStoppedError
                answer: Result | TunewrightError = reader.recv()
            except EOFError:
                raise ServiceUnavailableError("The process that fetched what the job needs died.") from None
            finally:
                assert process.pid is not None
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
                process.kill()
                fork_server.join(process, patience_seconds)
        if isinstance(answer, TunewrightError):
            raise answer
        return answer


def _answer(
    writer: Connection, environment: dict[str, str], work: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    os.setpgid(0, 0)
    end_with_parent()
    os.environ.update(environment)
    with writer:
        try:
            writer.send(work(*arguments))
        except TunewrightError as error:
            writer.send(error)


def _materialize(settings: Settings, key: str, directory: Path) -> Path:
    return open_store(settings.resolved_store_url, endpoint_url=settings.s3_endpoint_url).materialize(key, directory)
