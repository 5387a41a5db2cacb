"""What a run scored on its held-out rows, as the lines of a table."""

import math
from dataclasses import dataclass

from core.db.plain import from_plain
from core.jobs.evaluation import Evaluation, Scores
from core.jobs.models import Job


@dataclass(frozen=True)
class EvaluationTable:
    """Label, before and after of each score that was taken on both sides."""

    answers: int
    rows: list[tuple[str, str, str]]


def evaluation_table(job: Job) -> EvaluationTable | None:
    """The scores of a job that has succeeded; None where nothing was held out."""
    if job.evaluation is None:
        return None
    found = from_plain(Evaluation, job.evaluation)
    before, after = _shown(found.before), _shown(found.after)
    rows = [(label, before[label], after[label]) for label in before if label in after]
    if found.is_on_4bit_base and found.after.valid_loss is not None:
        elsewhere = found.valid_loss_on_16bit_base
        rows[:1] = [
            ("Loss, on the 4-bit base", *rows[0][1:]),
            ("Loss, on the 16-bit base", "–", "not measured" if elsewhere is None else f"{elsewhere:.4f}"),
        ]
    return EvaluationTable(found.answers, rows)


def _shown(scores: Scores) -> dict[str, str]:
    lines = {}
    if scores.valid_loss is not None:
        lines["Loss"] = f"{scores.valid_loss:.4f}"
        lines["Perplexity"] = f"{math.exp(min(scores.valid_loss, 30.0)):,.2f}"
    for label, share in (
        ("Token accuracy", scores.valid_mean_token_accuracy),
        ("Answers that stop by themselves", scores.stopped_rate),
        ("Exact match", scores.exact_match),
    ):
        if share is not None:
            lines[label] = f"{share:.1%}"
    return lines
