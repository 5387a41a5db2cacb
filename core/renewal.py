"""Claims that are short and renewed while the work goes on, so that another takes over soon after their holder died."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

from sqlalchemy.exc import DBAPIError

from core.outage_log import OutageLog

__all__ = ["CLAIMED", "renewed"]

CLAIMED = timedelta(seconds=30)
RENEWED_EVERY_SECONDS = 10.0


@contextmanager
def renewed(renew: Callable[[], None], claim: str) -> Iterator[None]:
    """Call `renew` every now and then while the block runs. `claim` names it in the log."""
    done = Event()
    thread = Thread(target=_keep_renewing, args=(renew, claim, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _keep_renewing(renew: Callable[[], None], claim: str, done: Event) -> None:
    outage = OutageLog("claim_not_renewed", "claim_renewed_again")
    while not done.wait(RENEWED_EVERY_SECONDS):
        try:
            renew()
        except DBAPIError as error:  # another may take over, which is harmless
            outage.away(error, claim=claim)
        else:
            outage.back(claim=claim)
