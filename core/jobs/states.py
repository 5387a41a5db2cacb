"""The states of a job and the only moves between them.

validating_files ─> queued ─> running ─> succeeded
                      │  ▲      │ ├────> failed
                      │  └──────┘ ├────> cancelling ─> cancelled
                      │ (retry)   └────> pausing ─> paused ─> queued
                      └─> cancelled | paused
"""

from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job stands."""

    VALIDATING_FILES = "validating_files"  # accepted; its data set is being checked against the model
    QUEUED = "queued"  # planned and paid for; waits for a device
    RUNNING = "running"  # a worker holds its lease
    PAUSING = "pausing"  # the worker was asked to stop after a checkpoint
    PAUSED = "paused"  # stopped after a checkpoint; waits for its owner
    SUCCEEDED = "succeeded"  # the artifact is proven and published
    FAILED = "failed"  # cannot go on; costs nothing, unless its owner caused it
    CANCELLING = "cancelling"  # the worker was asked to end
    CANCELLED = "cancelled"  # ended by its owner; costs what it used

    @classmethod
    def finished(cls) -> tuple["JobStatus", ...]:
        """The states that nothing leaves."""
        return cls.SUCCEEDED, cls.FAILED, cls.CANCELLED

    @classmethod
    def leased(cls) -> tuple["JobStatus", ...]:
        """The states in which a worker holds the job."""
        return cls.RUNNING, cls.PAUSING, cls.CANCELLING

    @property
    def is_finished(self) -> bool:
        """Whether nothing leaves this state."""
        return self in JobStatus.finished()


class JobSort(StrEnum):
    """What a list of jobs is sorted by."""

    CREATED = "created"
    NAME = "name"
    MODEL = "model"
    STATUS = "status"  # in the order in which a job goes through them
    STEPS = "steps"
    LOSS = "loss"  # the newest validation loss
    CREDITS = "credits"  # charged, or quoted where it is not finished


_S = JobStatus

MOVES: dict[tuple[JobStatus, JobStatus], str] = {
    (_S.VALIDATING_FILES, _S.QUEUED): "The data set suits the model; the plan is frozen and its quote is held.",
    (_S.VALIDATING_FILES, _S.FAILED): "The data set cannot be used.",
    (_S.VALIDATING_FILES, _S.CANCELLED): "The owner changed their mind before it was planned.",
    (_S.QUEUED, _S.RUNNING): "A worker claimed it.",
    (_S.QUEUED, _S.PAUSED): "The owner paused it before a worker claimed it.",
    (_S.QUEUED, _S.CANCELLED): "The owner cancelled it before a worker claimed it.",
    (_S.RUNNING, _S.QUEUED): "Its worker was lost or drained; it goes on from its last checkpoint elsewhere.",
    (_S.RUNNING, _S.PAUSING): "The owner asked for a pause.",
    (_S.RUNNING, _S.CANCELLING): "The owner asked for its end.",
    (_S.RUNNING, _S.SUCCEEDED): "The artifact is proven and published.",
    (_S.RUNNING, _S.FAILED): "It cannot go on.",
    (_S.PAUSING, _S.PAUSED): "The worker stopped after a checkpoint.",
    (_S.PAUSING, _S.SUCCEEDED): "It was done before the pause reached it.",
    (_S.PAUSING, _S.FAILED): "It broke before the pause reached it.",
    (_S.PAUSING, _S.CANCELLING): "The owner asked for its end instead.",
    (_S.PAUSED, _S.QUEUED): "The owner resumed it.",
    (_S.PAUSED, _S.CANCELLED): "The owner gave it up.",
    (_S.CANCELLING, _S.CANCELLED): "The worker let go of it, or is gone.",
}


def can_move(source: JobStatus, target: JobStatus) -> bool:
    """Whether the table has this move."""
    return (source, target) in MOVES
