"""What the answers to held-out prompts say of a model: whether it stops, and whether it is right."""

from collections.abc import Sequence

from core.datasets.final_answers import ExactMatch, final_answer, is_match
from core.jobs.evaluation import Evaluation, Scores
from planner.constants import SAMPLE_TOKENS
from planner.objectives import SPECS
from planner.setup import Method
from worker.protocol import RunRequest
from worker.training.export.sampling import Answer, Prompt
from worker.training.metrics import MetricsRow


def answered_rows(request: RunRequest) -> int:
    """Held-out prompts to answer: enough to show, and to compare where that is asked for."""
    return max(request.sample_count, request.exact_match.rows if request.exact_match else 0)


def answer_length(request: RunRequest) -> int:
    """Tokens at which an answer is cut off."""
    return request.exact_match.max_new_tokens if request.exact_match else SAMPLE_TOKENS


def evaluation_of(
    request: RunRequest,
    rows: Sequence[MetricsRow],
    prompts: Sequence[Prompt],
    before: Sequence[Answer],
    after: Sequence[Answer],
) -> Evaluation | None:
    """The scores before the first step and after the last; None where nothing was held out."""
    evaluated = [row for row in rows if row.valid_loss is not None]
    if not evaluated and not prompts:
        return None
    first, last = (evaluated[0], evaluated[-1]) if evaluated else (MetricsRow(0), MetricsRow(0))
    return Evaluation(
        before=_scores(request, first, prompts, before),
        after=_scores(request, last, prompts, after),
        answers=len(prompts),
        is_on_4bit_base=request.setup.method is Method.QLORA,
    )


def compared_answers(
    exact_match: ExactMatch, prompts: Sequence[Prompt], before: Sequence[Answer], after: Sequence[Answer]
) -> list[dict[str, object]]:
    """Every comparison behind the exact match, for `exact_match.json`."""
    return [
        {
            "row": prompt.row,
            "prompt": prompt.text,
            "expected": prompt.expected,
            "before": _compared(exact_match, prompt, first),
            "after": _compared(exact_match, prompt, last),
        }
        for prompt, first, last in zip(prompts, before, after, strict=True)
    ]


def _compared(exact_match: ExactMatch, prompt: Prompt, answer: Answer) -> dict[str, object]:
    return {
        "text": answer.text,
        "final_answer": final_answer(answer.text, exact_match.extract),
        "is_match": is_match(answer.text, prompt.expected, exact_match.extract),
        "stopped": answer.stopped,
    }


def _scores(request: RunRequest, row: MetricsRow, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Scores:
    matched = None
    if request.exact_match is not None and answers:
        extract = request.exact_match.extract
        hits = [
            is_match(answer.text, prompt.expected, extract) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        matched = sum(hits) / len(hits)
    held_out = SPECS[request.setup.objective].held_out
    return Scores(
        metrics={metric.name: row.metrics[metric.name] for metric in held_out if metric.name in row.metrics},
        stopped_rate=sum(answer.stopped for answer in answers) / len(answers) if answers else None,
        exact_match=matched,
    )
