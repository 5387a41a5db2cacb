"""What a run scored on its held-out rows, as the lines of a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.db.serialization import deserialize
from core.jobs.evaluation import Evaluation, Scores
from core.jobs.models import Job
from planner.objectives import SPECS, VALID_LOSS, Metric
from planner.setup import TrainingSetup


@dataclass(frozen=True)
class EvaluationTable:
    """Label, before and after of each score that was taken on both sides."""

    answers: int
    rows: list[tuple[str, str, str]]


def evaluation_table(job: Job) -> EvaluationTable | None:
    """The scores of a job that has succeeded; None where nothing was held out."""
    if job.evaluation is None:
        return None
    found = deserialize(Evaluation, job.evaluation)
    metrics = SPECS[deserialize(TrainingSetup, job.setup).objective].held_out
    before, after = _shown(metrics, found.before), _shown(metrics, found.after)
    rows = [(label, before[label], after[label]) for label in before if label in after]
    if found.is_on_4bit_base and found.after.valid_loss is not None:
        elsewhere = found.valid_loss_on_16bit_base
        rows[:1] = [
            ("Loss, on the 4-bit base", *rows[0][1:]),
            ("Loss, on the 16-bit base", "–", "not measured" if elsewhere is None else f"{elsewhere:.4f}"),
        ]
    return EvaluationTable(found.answers, rows)


def _shown(metrics: Sequence[Metric], scores: Scores) -> dict[str, str]:
    lines = {}
    for metric in metrics:
        if (value := scores.metrics.get(metric.name)) is None:
            continue
        lines[metric.title] = metric.shown(value)
        if metric.name == VALID_LOSS:
            lines["Perplexity"] = f"{math.exp(min(value, 30.0)):,.2f}"
    for label, share in (
        ("Answers that stop by themselves", scores.stopped_rate),
        ("Exact match", scores.exact_match),
    ):
        if share is not None:
            lines[label] = f"{share:.1%}"
    return lines
