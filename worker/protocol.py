"""What the supervisor and its training child say to each other. Plain data, no torch on either side of it.

The request goes in once, as a dataclass; reports come back as JSON Lines on a pipe, one object per line with a
`type`. The child writes nothing else on that pipe, and everything it says is also true on disk before it says it.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Literal

from core.datasets.examples import DataFormat
from core.datasets.final_answers import ExactMatch
from core.db.serialization import deserialize
from core.errors import TrainingError
from core.jobs.evaluation import Evaluation
from core.jobs.verdict import Verdict
from planner.constants import SAMPLE_ROWS
from planner.objectives import TRAIN_LOSS, VALID_LOSS
from planner.setup import Hyperparameters, TrainingSetup

_NOT_ON_THE_WIRE = {"type", "processed_tokens", "metrics"}
STOPPED_EXIT_CODE = 75  # the child obeyed SIGTERM: it wrote a checkpoint and left (EX_TEMPFAIL in sysexits.h)


@dataclass(frozen=True)
class RunRequest:
    """One attempt at one job. The child resumes by itself from the newest valid checkpoint under `run_directory`."""

    job_id: str
    base_model: str  # what adapter_config.json names as base: a hub id or the catalogue id
    base_model_revision: str | None
    base_model_path: str  # directory with config.json, tokenizer files and *.safetensors
    training_path: str
    validation_path: str | None
    data_format: DataFormat
    setup: TrainingSetup
    hyperparameters: Hyperparameters
    seed: int
    device: str  # "cpu" or "cuda:0", the first of those that the child sees
    run_directory: str  # checkpoints/ and export/ live under it
    plan: dict[str, object]  # published verbatim as plan.json
    suffix: str | None = None
    checkpoint_interval_seconds: float = 60.0  # at most, within an epoch; 0: after every step
    sample_count: int = SAMPLE_ROWS  # held-out prompts answered before and after
    learning_rate_factor: float = 1.0  # of the planned rate; below 1 after a divergence
    chat_template: str | None = None  # a named one, published with the result; None: the model's own, or none
    exact_match: ExactMatch | None = None
    visible_devices: tuple[str, ...] | None = None  # uuids of the GPUs that are this run's; None: all that are here
    memory_limit_bytes: int | None = None  # a cap below the device's own, as a fault injection or a share of a GPU


class Phase(StrEnum):
    """Where a child is. Each is announced when it starts."""

    LOADING = "loading"
    PROBING = "probing"  # the longest batch, once forward, backward and step
    EVALUATING = "evaluating"
    SAMPLING = "sampling"
    TRAINING = "training"
    EXPORTING = "exporting"
    VERIFYING = "verifying"  # the export, reloaded in a fresh process


@dataclass(frozen=True)
class PhaseReport:
    """A phase starts."""

    phase: Phase
    type: Literal["phase"] = "phase"


@dataclass(frozen=True)
class HeldOutReport:
    """The rows are read; these are measured on."""

    rows: int
    scored_tokens: int
    sha256: str  # see core.jobs.evaluation.HeldOut
    type: Literal["held_out"] = "held_out"


class _Measured:
    """What was measured at a step, by the names of planner/objectives.py."""

    metrics: dict[str, float]

    @property
    def train_loss(self) -> float | None:
        """Of the step's micro-batches."""
        return self.metrics.get(TRAIN_LOSS)

    @property
    def valid_loss(self) -> float | None:
        """Of the held-out rows behind the step."""
        return self.metrics.get(VALID_LOSS)


@dataclass(frozen=True)
class MetricsReport(_Measured):
    """One optimizer step is done and counted, or one evaluation behind it."""

    step: int  # optimizer steps done, 1-based
    total_steps: int
    metrics: dict[str, float]  # by the names of planner/objectives.py; none of a step that was skipped
    learning_rate: float
    grad_norm: float | None
    tokens_per_second: float  # non-padding tokens
    memory_bytes: int  # allocated on CUDA, resident set on a CPU
    processed_tokens: int  # non-padding tokens processed so far, over all attempts
    epoch: float
    type: Literal["metrics"] = "metrics"

    def shown(self, names: Iterable[str]) -> dict[str, object]:
        """The report as the wire shows it: flat, with each of these metrics, null where there is none."""
        others = {name: value for name, value in vars(self).items() if name not in _NOT_ON_THE_WIRE}
        return others | {name: self.metrics.get(name) for name in names}


@dataclass(frozen=True)
class MemoryReport:
    """Measured peak, after the probe and at the end."""

    when: Literal["probe", "end"]
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_bytes: int  # highest use of the device by this process, context included; the peak resident set on a CPU
    versions: dict[str, str]  # of the libraries that decide it
    is_attributed: bool = True  # else other programs were on the GPU, and `device_bytes` is the least that was ours
    as_planned: bool = True  # else the run fell back from what was planned, or took no step
    type: Literal["memory"] = "memory"


@dataclass(frozen=True)
class CheckpointReport(_Measured):
    """A checkpoint is complete on disk."""

    step: int
    path: str
    metrics: dict[str, float]  # of its step
    type: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True)
class MessageReport:
    """A sentence for the user."""

    message: str
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message"] = "message"


@dataclass(frozen=True)
class ResultReport:
    """The run is finished, exported and proven. `files` maps artifact names to paths under the run directory."""

    files: dict[str, str]
    processed_tokens: int
    steps: int
    published_step: int  # whose model it is; below `steps` where an earlier one had the lowest validation loss
    train_seconds: float  # of this attempt, loading and export excluded
    step_seconds: float | None  # of one optimizer step, on average over this attempt; None where it took none
    checkpoints: int  # written by this attempt
    checkpoint_seconds: float  # that they took of train_seconds
    final_train_loss: float | None
    initial_valid_loss: float | None
    final_valid_loss: float | None
    evaluation: Evaluation | None = None
    verdict: Verdict | None = None
    type: Literal["result"] = "result"


@dataclass(frozen=True)
class ErrorReport:
    """The run cannot go on. `code` is one of core.errors' stable codes."""

    code: str
    message: str
    param: str | None = None
    phase: Phase | None = None
    error_type: str = TrainingError.type  # of core.errors' classes: whether the service or its user made it
    type: Literal["error"] = "error"


Report = (
    PhaseReport
    | HeldOutReport
    | MetricsReport
    | MemoryReport
    | CheckpointReport
    | MessageReport
    | ResultReport
    | ErrorReport
)

_REPORTS: dict[str, type[Report]] = {
    "phase": PhaseReport,
    "held_out": HeldOutReport,
    "metrics": MetricsReport,
    "memory": MemoryReport,
    "checkpoint": CheckpointReport,
    "message": MessageReport,
    "result": ResultReport,
    "error": ErrorReport,
}


def encode_report(report: Report) -> dict[str, object]:
    """The report as the JSON object that goes on the wire."""
    return asdict(report)


def decode_report(data: dict[str, object]) -> Report:
    """The report that `encode_report` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    if data.get("evaluation") is not None:
        data = {**data, "evaluation": deserialize(Evaluation, data["evaluation"])}
    if data.get("verdict") is not None:
        data = {**data, "verdict": deserialize(Verdict, data["verdict"])}
    return _REPORTS[str(data["type"])](**data)  # type: ignore[arg-type]
