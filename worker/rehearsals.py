"""Rehearsals in a child process: torch is loaded there and nowhere here."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from core.db.plain import from_plain, to_plain
from core.errors import InvalidModelError
from planner.model_spec import ModelSpec
from planner.rehearsed import RehearsedStep
from planner.setup import TrainingSetup

PROGRAM = "worker.training.rehearse"


def survey(config: Mapping[str, Any]) -> ModelSpec:
    """The parameters of a model that the planner has no family of, by role. Raises InvalidModelError."""
    return from_plain(ModelSpec, _ask({"config": dict(config), "kind": "cuda", "setups": None})["spec"])


def rehearse(
    config: Mapping[str, Any], setups: Sequence[TrainingSetup], kind: Literal["cuda", "cpu"]
) -> tuple[RehearsedStep, ...]:
    """One rehearsed step for each setup, on the kernels of a kind of device. Raises InvalidModelError."""
    asked = {"config": dict(config), "kind": kind, "setups": [to_plain(setup) for setup in setups]}
    return tuple(from_plain(RehearsedStep, step) for step in _ask(asked)["steps"])


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", PROGRAM]
    done = subprocess.run(command, input=orjson.dumps(request), capture_output=True, check=False)  # noqa: S603 - our own module, no shell
    try:
        answer: dict[str, Any] = orjson.loads(done.stdout)
    except orjson.JSONDecodeError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InvalidModelError(
            f"The rehearsal of {request['config'].get('model_type')!r} ended with code {done.returncode}: {last}",
            code="unsupported_architecture",
            param="model",
        ) from None
    if "error" in answer:
        raise InvalidModelError(answer["error"], code="unsupported_architecture", param="model")
    return answer
