"""What the curves of a finished run say, in plain words: a pure function of the losses it recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from planner.constants import TELLING_ROWS
from planner.wording import counted

# A change of the loss below this share of it is noise: seeds and the order of rows move it as much.
_NOTHING = 0.01


class VerdictKind(StrEnum):
    """How a run ended, as far as its losses tell."""

    STILL_IMPROVING = "still_improving"  # the held-out loss was falling to the end
    CONVERGED = "converged"  # it has fallen, and no longer does
    OVERFITTED = "overfitted"  # it rose again behind the step that is named
    DID_NOT_LEARN = "did_not_learn"  # it never fell below where it began
    MEASURED_ON_TOO_LITTLE = "measured_on_too_little"  # on so few rows that it tells nothing
    NOT_MEASURED = "not_measured"  # nothing was held out


@dataclass(frozen=True)
class Verdict:
    """What a run comes to. `step` is the one with the lowest held-out loss; None where nothing was held out."""

    kind: VerdictKind
    step: int | None
    message: str


@dataclass(frozen=True)
class Curves:
    """What a run recorded: losses by step, in their order."""

    training: Sequence[float]
    evaluations: Sequence[tuple[int, float]]  # on the held-out rows; step 0 is before training
    held_out_rows: int
    published_step: int


def judge(curves: Curves) -> Verdict:
    """The verdict on a run that has ended well."""
    trained = [one for one in curves.evaluations if one[0] > 0]
    if not trained or len(trained) == len(curves.evaluations):
        return _unmeasured(curves.training)
    first, last = curves.evaluations[0][1], trained[-1][1]
    step, lowest = min(trained, key=lambda one: one[1])
    if curves.held_out_rows < TELLING_ROWS:
        rows = counted(curves.held_out_rows, "held-out row")
        return Verdict(
            VerdictKind.MEASURED_ON_TOO_LITTLE,
            step,
            f"The loss went from {_loss(first)} to {_loss(last)}, but on {rows}, which is too few to tell. Hold at "
            f"least {TELLING_ROWS} out, and read the answers before and after.",
        )
    if lowest > first * (1 - _NOTHING):
        return Verdict(
            VerdictKind.DID_NOT_LEARN,
            step,
            f"The held-out loss began at {_loss(first)} and never fell clearly below it ({_loss(lowest)} at best). "
            "Either the base model knew this already, or the rows do not teach what the held-out ones ask. Check "
            "the data, then try another learning rate.",
        )
    if last > lowest * (1 + _NOTHING):
        published = "is published" if curves.published_step == step else "is not the one that is published"
        return Verdict(
            VerdictKind.OVERFITTED,
            step,
            f"Overfitted since step {step:,}: the held-out loss was lowest there ({_loss(lowest)}) and rose to "
            f"{_loss(last)} while training went on. The model of that step {published}. Fewer epochs or "
            "more varied rows would help.",
        )
    if len(trained) == 1 or last < trained[-2][1] * (1 - _NOTHING):
        since = (
            f"{_loss(trained[-2][1])} to {_loss(last)} in the last stretch"
            if len(trained) > 1
            else f"{_loss(first)} to {_loss(last)}"
        )
        return Verdict(
            VerdictKind.STILL_IMPROVING,
            step,
            f"Still improving at the end: the held-out loss fell from {since}. More epochs are worth a try.",
        )
    return Verdict(
        VerdictKind.CONVERGED,
        step,
        f"Converged: the held-out loss fell from {_loss(first)} to {_loss(lowest)} and no longer moves. More epochs "
        "would add little; more or other rows might.",
    )


def _loss(value: float) -> str:
    """A loss with so many digits that what counts as a change is seen, also where little is left of it."""
    return f"{value:.3f}" if value >= 0.1 else f"{value:.3g}"


def _unmeasured(training: Sequence[float]) -> Verdict:
    moved = (
        f" The training loss went from {_loss(training[0])} to {_loss(training[-1])}, which"
        if training
        else " That it ended"
    )
    return Verdict(
        VerdictKind.NOT_MEASURED,
        None,
        f"No row was held out, so nothing shows what was learned beyond the rows themselves.{moved} does not tell. "
        "Hold some rows out, and read the answers.",
    )
