"""The objectives there are, by their name in a plan."""

from typing import Any

from core.datasets.encoding import Encoder
from planner import objectives as planned
from worker.protocol import RunRequest
from worker.training.objectives.objective import Objective
from worker.training.objectives.supervised.objective import Supervised

OBJECTIVES: dict[planned.Objective, type[Objective[Any, Any]]] = {kind.name: kind for kind in (Supervised,)}


def objective_of(request: RunRequest, encoder: Encoder) -> Objective[Any, Any]:
    """The request's objective, with its rows read. Raises InvalidDatasetError."""
    return OBJECTIVES[request.setup.objective](request, encoder)
