"""`python -m worker.training.rehearse`: surveys and rehearsals for a process that must not load torch.

Reads one JSON object `{config, kind, setups}` on standard input, where `setups` null asks for a survey. Writes
`{"spec": ...}` or `{"steps": [...]}` on standard output, or `{"error": ...}` with exit code 1.
"""

import sys
from typing import Any

import orjson
import torch

from core.db.plain import from_plain, to_plain
from core.errors import TunewrightError
from planner.rehearsed import RehearsedStep
from planner.setup import TrainingSetup
from worker.training.fake_model import read_config
from worker.training.libraries import quiet
from worker.training.live_memory import Category
from worker.training.rehearsal import Kind, rehearse
from worker.training.survey import survey

SAMPLED_FROM = 16  # decoder layers; deeper models are rehearsed with two numbers of them, which gives the whole
SAMPLE = (2, 3)


def main() -> int:
    """Answer the request on standard input."""
    quiet()
    torch.set_num_threads(1)  # nothing is computed
    request = orjson.loads(sys.stdin.buffer.read())
    try:
        answer = _answer(request)
    except TunewrightError as error:
        answer = {"error": error.message}
    sys.stdout.buffer.write(orjson.dumps(answer))
    return 1 if "error" in answer else 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    config = request["config"]
    if request["setups"] is None:
        return {"spec": to_plain(survey(config))}
    setups = [from_plain(TrainingSetup, setup) for setup in request["setups"]]
    return {"steps": [to_plain(_step(config, setup, request["kind"])) for setup in setups]}


def _step(config: dict[str, Any], setup: TrainingSetup, kind: Kind) -> RehearsedStep:
    depth = read_config(config).get_text_config().num_hidden_layers
    done = rehearse(config, setup, kind, SAMPLE if depth >= SAMPLED_FROM and not config.get("layer_types") else None)
    return RehearsedStep(
        setup=setup,
        base_bytes=done.static.get(Category.BASE, 0),
        static_bytes=done.static_bytes,
        phases={moment.phase: moment.total_bytes for moment in done.moments},
        operator=f"{done.peak.operator} ({done.peak.phase})",
        layers=done.sampled_layers,
    )


if __name__ == "__main__":
    raise SystemExit(main())
