"""Work on input of strangers, done in a child process with limits: see `run_limited`, `LimitedChild`, `ChildPool`."""

from core.limited.limits import ChildDiedError, Limit, LimitExceededError, Limits
from core.limited.pool import ChildPool
from core.limited.process import LimitedChild, run_limited
from core.limited.refusals import Refusals
from core.limited.shares import Shares
from core.limited.turns import Turns

__all__ = [
    "ChildDiedError",
    "ChildPool",
    "Limit",
    "LimitExceededError",
    "LimitedChild",
    "Limits",
    "Refusals",
    "Shares",
    "Turns",
    "run_limited",
]
