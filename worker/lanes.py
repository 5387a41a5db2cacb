"""Work of one kind, a few pieces at once, apart from work of other kinds; and work that is done every now and then."""

from collections.abc import Callable
from threading import Condition, Event, Thread

from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from core.errors import ServiceUnavailableError
from core.hang_guard import Pulse
from core.outage_log import OutageLog

__all__ = ["Lane", "Periodic"]


class Lane:
    """Threads that do the next piece of work until there is none. A nudge says that there may be some again."""

    def __init__(self, name: str, work_next: Callable[[], bool], at_once: int) -> None:
        self._name, self._work_next, self._at_once = name, work_next, at_once
        self._lock = Condition()
        self._running = 0
        self._outage = OutageLog("work_put_off", "work_goes_on")
        self._is_nudged = self._is_closed = False

    def nudge(self, *_: object) -> None:
        """Look for work, soon and in a thread of the lane's own."""
        with self._lock:
            self._is_nudged = True
            if self._running == self._at_once or self._is_closed:
                return
            self._running += 1
        Thread(target=self._work, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """Start no more work."""
        with self._lock:
            self._is_closed = True

    def wait(self, seconds: float) -> None:
        """Wait for what is being done, for so long at most."""
        with self._lock:
            self._lock.wait_for(lambda: self._running == 0, seconds)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._is_nudged = False
            did_something = self._try()
            with self._lock:
                if self._is_closed or not (did_something or self._is_nudged):
                    self._running -= 1
                    self._lock.notify_all()
                    return

    def _try(self) -> bool:
        try:
            did_something = self._work_next()
        except (ServiceUnavailableError, DBAPIError) as error:  # what waits is looked for again by the sweep
            self._outage.away(error, lane=self._name)
            return False
        self._outage.back(lane=self._name)
        return did_something


class Periodic:
    """Something done again and again in a thread of its own, so that nothing else can keep it waiting."""

    def __init__(self, name: str, do: Callable[[], None], seconds: float) -> None:
        self._name, self._do, self._seconds = name, do, seconds
        self.pulse = Pulse()
        self._stopping = Event()
        self._outage = OutageLog("put_off", "done_again")

    def start(self) -> None:
        """Do it now, and then every so many seconds."""
        Thread(target=self._keep_on, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """Do it no more; what is being done ends by itself."""
        self._stopping.set()

    def _keep_on(self) -> None:
        while not self._stopping.is_set():
            self.pulse.beat()
            try:
                self._do()
            except (ServiceUnavailableError, DBAPIError, RedisError) as error:
                self._outage.away(error, what=self._name)
            else:
                self._outage.back(what=self._name)
            with self.pulse.resting():
                self._stopping.wait(self._seconds)
        self.pulse.retire()
