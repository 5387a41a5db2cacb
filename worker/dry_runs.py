"""Dry runs in a child process: torch is loaded there and nowhere here."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from subprocess import PIPE
from typing import Any, Literal

import orjson

from core.db.serialization import deserialize, serialize
from core.errors import InvalidModelError, ServiceUnavailableError
from planner.memory.dry_run import DryRunMemory, DryRunQuestion, DryRunStep
from planner.setup import TrainingSetup
from worker.environment import without_secrets

PROGRAM = "worker.training.dry_run"
_RUNNING: set[subprocess.Popen[bytes]] = set()
_ENDED: set[subprocess.Popen[bytes]] = set()  # by `end_all`
LONGEST_SECONDS = 600.0  # two dozen steps of a few seconds each, on a machine that has other things to do


def dry_run_memory(question: DryRunQuestion) -> DryRunMemory:
    """A model that the planner has no family of: its parameters and its dry-run steps. Raises InvalidModelError."""
    answer = _ask({"question": serialize(question)}, question.config)
    return deserialize(DryRunMemory, answer["memory"])


def dry_run(
    config: Mapping[str, Any], setups: Sequence[TrainingSetup], kind: Literal["cuda", "cpu"]
) -> tuple[DryRunStep, ...]:
    """One dry-run step for each setup, on the kernels of a kind of device. Raises InvalidModelError."""
    asked = {"config": dict(config), "kind": kind, "setups": [serialize(setup) for setup in setups]}
    return tuple(deserialize(DryRunStep, step) for step in _ask(asked, config)["steps"])


def end_all() -> None:
    """End the dry runs of this process, whose callers get ServiceUnavailableError: it is told to stop."""
    for child in list(_RUNNING):
        _ENDED.add(child)
        child.kill()


def _ask(request: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    name = f"The dry run of {config.get('model_type')!r}"
    command = [sys.executable, "-m", PROGRAM, str(os.getpid())]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=without_secrets()) as child:  # noqa: S603 - our own module, no shell
        _RUNNING.add(child)
        try:
            output, errors = child.communicate(orjson.dumps(request), LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            message = f"{name} took longer than {LONGEST_SECONDS:.0f} s and was ended. Try a smaller model."
            raise _refusal(message) from None
        finally:
            _RUNNING.discard(child)
    if child in _ENDED:
        _ENDED.discard(child)
        raise ServiceUnavailableError(f"{name} was ended, since its process shuts down. Another will take it up.")
    try:
        answer: dict[str, Any] = orjson.loads(output)
    except orjson.JSONDecodeError:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise _refusal(f"{name} ended with code {child.returncode}: {last}") from None
    if "error" in answer:
        raise _refusal(answer["error"])
    return answer


def _refusal(message: str) -> InvalidModelError:
    return InvalidModelError(message, code="unsupported_architecture", param="model")
