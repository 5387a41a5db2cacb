"""`python -m worker.training.dry_run PARENT`: dry runs for a process that must not load torch.

Reads one JSON object on standard input: `{question}` (a DryRunQuestion) asks for a survey of the model and
every step that planning it takes, `{config, kind, setups}` for steps alone. Writes `{"memory": ...}` (DryRunMemory)
or `{"steps": [...]}` on standard output, or `{"error": ...}` with exit code 1.
"""

import resource
import sys
from collections.abc import Mapping
from typing import Any

import orjson
import torch

from core.db.serialization import deserialize, serialize
from core.errors import InvalidRequestError, TunewrightError
from core.limited.lifetime import end_with_parent
from planner.errors import InvalidSetupError
from planner.memory.dry_run import DryRunMemory, DryRunQuestion, DryRunStep
from planner.policy.candidates import Question
from planner.policy.choice import setups_to_dry_run
from planner.setup import TrainingSetup
from worker.training.dry_run.fake_model import read_config
from worker.training.dry_run.introspection import introspect
from worker.training.dry_run.memory_tracker import Category
from worker.training.dry_run.step import Kind, dry_run
from worker.training.libraries import quiet

SAMPLED_FROM = 16  # decoder layers; deeper models are dry-run with two numbers of them, which gives the whole
SAMPLE = (2, 3)
# Of private memory. No tensor holds data here; what could grow is a configuration with millions of layers.
MEMORY_LIMIT_BYTES = 8 * 2**30


def main() -> int:
    """Answer the request on standard input. The argument is the process that asks, and is not outlived."""
    end_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    quiet()
    torch.set_num_threads(1)  # nothing is computed
    request = orjson.loads(sys.stdin.buffer.read())
    try:
        answer = _answer(request)
    except TunewrightError as error:
        answer = {"error": error.message}
    except MemoryError:
        answer = {"error": f"The dry run takes more than {MEMORY_LIMIT_BYTES >> 30} GiB: the model is too large."}
    sys.stdout.buffer.write(orjson.dumps(answer))
    return 1 if "error" in answer else 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "question" in request:
        return {"memory": serialize(answer_question(deserialize(DryRunQuestion, request["question"])))}
    setups = [deserialize(TrainingSetup, setup) for setup in request["setups"]]
    return {"steps": [serialize(_step(request["config"], setup, request["kind"])) for setup in setups]}


def answer_question(question: DryRunQuestion) -> DryRunMemory:
    """The model counted, and every step dry-run that planning it takes. Raises InvalidModelError, TrainingError."""
    spec = introspect(question.config)
    steps = list[DryRunStep]()
    for kind in question.kinds:
        try:
            setups = setups_to_dry_run(Question(spec, question.statistics, (), question.requested, {}), kind)
        except InvalidSetupError as error:
            raise InvalidRequestError(str(error)) from None
        steps += [_step(question.config, setup, "cpu" if kind == "cpu" else "cuda") for setup in setups]
    return DryRunMemory(spec, tuple(steps))


def _step(config: Mapping[str, Any], setup: TrainingSetup, kind: Kind) -> DryRunStep:
    depth = read_config(config).get_text_config().num_hidden_layers
    done = dry_run(config, setup, kind, SAMPLE if depth >= SAMPLED_FROM and not config.get("layer_types") else None)
    return DryRunStep(
        setup=setup,
        kind=kind,
        base_bytes=done.static.get(Category.BASE, 0),
        static_bytes=done.static_bytes,
        phases={moment.phase: moment.total_bytes for moment in done.moments},
        operator=f"{done.peak.operator} ({done.peak.phase})",
        layers=done.sampled_layers,
    )


if __name__ == "__main__":
    raise SystemExit(main())
