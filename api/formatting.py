"""Numbers and states as people say them. The templates' filters."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from core.jobs.states import JobStatus
from core.jobs.verdict import VerdictKind
from core.ledger.models import TransactionKind
from planner.wording import METHODS, counted, duration, gib, sentence, why

STATUSES = {
    JobStatus.VALIDATING_FILES: ("Checking the data", "info"),
    JobStatus.QUEUED: ("Waiting for a device", "info"),
    JobStatus.RUNNING: ("Running", "info"),
    JobStatus.PAUSING: ("Pausing", "warn"),
    JobStatus.PAUSED: ("Paused", "warn"),
    JobStatus.SUCCEEDED: ("Succeeded", "good"),
    JobStatus.FAILED: ("Failed", "bad"),
    JobStatus.CANCELLING: ("Cancelling", "warn"),
    JobStatus.CANCELLED: ("Cancelled", "idle"),
}
VERDICTS = {
    VerdictKind.STILL_IMPROVING: ("Still improving", "info"),
    VerdictKind.CONVERGED: ("Converged", "good"),
    VerdictKind.OVERFITTED: ("Overfitted", "warn"),
    VerdictKind.DID_NOT_LEARN: ("Did not learn", "bad"),
    VerdictKind.MEASURED_ON_TOO_LITTLE: ("Too few rows to tell", "warn"),
    VerdictKind.NOT_MEASURED: ("Not measured", "idle"),
}
PHASES = {
    "loading": "Loading the base model",
    "probing": "Trying the longest batch, to be sure that it fits",
    "evaluating": "Measuring the loss on held-out rows",
    "sampling": "Answering held-out prompts, to compare later",
    "training": "Training",
    "exporting": "Writing the adapter",
    "verifying": "Verifying the export in a fresh process",
}
MOVEMENTS = {
    TransactionKind.GRANT: "Code redeemed",
    TransactionKind.HOLD: "Held for a job",
    TransactionKind.CAPTURE: "Charged for a job",
    TransactionKind.RELEASE: "Returned from a job",
    TransactionKind.REFUND: "Refunded",
}
SHAPES = {
    "messages": "Conversations (OpenAI's chat format)",
    "sharegpt": "Conversations (ShareGPT)",
    "prompt_completion": "Prompts and completions",
    "question_answer": "Questions and answers",
    "alpaca": "Instructions (Alpaca)",
    "preference": "Preference pairs, the chosen answer",
    "text": "Plain text",
}


def count(number: float) -> str:
    """A number with its thousands apart."""
    return f"{number:,.0f}"


def short(number: float) -> str:
    """A large number in three digits or so: 135M, 1.7B, 12k."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{number:.0f}"


def tokens(number: int) -> str:
    """A length in tokens as such lengths are named: 8k is 8,192."""
    return f"{number // 1024}k" if number >= 1024 else str(number)


def credits_of(amount: int) -> str:
    """An amount of credits."""
    return counted(amount, "credit")


def ago(moment: datetime) -> str:
    """How long ago, roughly."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if seconds < 45:
        return "just now"
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size or unit == "minute":
            return f"{counted(max(1, round(seconds / size)), unit)} ago"
    raise AssertionError("unreachable")


def left(moment: datetime) -> str:
    """How long until then."""
    if moment - datetime.now(UTC) < timedelta(seconds=5):
        return "a moment"
    return duration((moment - datetime.now(UTC)) / timedelta(seconds=1))


def clock(moment: datetime) -> str:
    """A time to the second, UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(moment: datetime) -> str:
    """A time as machines read it."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


PROBLEMS = {
    403: "Not allowed",
    404: "Not found",
    429: "Too many requests",
    500: "Something went wrong on our side",
    503: "Not ready",
}
PROBLEMS_BY_CODE = {"sign_in_link_spent": "This link has expired"}
FILTERS: dict[str, Callable[..., str]] = {
    "memory": gib,
    "duration": duration,
    "count": count,
    "short": short,
    "tokens": tokens,
    "credits": credits_of,
    "counted": counted,
    "ago": ago,
    "left": left,
    "clock": clock,
    "iso": iso,
    "method": lambda method: METHODS[method],
    "sentence": sentence,
    "why": why,
    "problem": lambda error: PROBLEMS_BY_CODE.get(error.code) or PROBLEMS.get(error.status, "That did not work"),
    "status": lambda status: STATUSES[status][0],
    "tone": lambda status: STATUSES[status][1],
    "verdict": lambda kind: VERDICTS[VerdictKind(kind)][0],
    "verdict_tone": lambda kind: VERDICTS[VerdictKind(kind)][1],
    "phase": lambda phase: PHASES.get(phase) or str(phase).capitalize(),
    "movement": lambda kind: MOVEMENTS[kind],
    "shape": lambda shape: SHAPES.get(shape) or str(shape),
}
