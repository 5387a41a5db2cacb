"""Work on input of strangers, done in a child process with limits: see `run_limited` and `LimitedChild`."""

from core.limited.limits import ChildDiedError, Limit, LimitExceededError, Limits
from core.limited.process import LimitedChild, run_limited

__all__ = ["ChildDiedError", "Limit", "LimitExceededError", "LimitedChild", "Limits", "run_limited"]
