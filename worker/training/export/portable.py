"""What makes a directory load outside of a run, by transformers and PEFT alone: an export, and every checkpoint."""

import copy
import json
import shutil
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from core.datasets.named_templates import publish_template
from planner.setup import Method
from worker.protocol import RunRequest
from worker.training.model.initialization import published_config, published_factors
from worker.training.model.loading import LoadedModel
from worker.training.model.modules_to_save import published_modules

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def write_portable(loaded: LoadedModel, request: RunRequest, card: str, directory: Path) -> None:
    """What a checkpoint needs beside its trained parameters to load with `from_pretrained`. Raises OSError."""
    if request.setup.method is Method.FULL:
        config = copy.deepcopy(loaded.causal_model.config)
        config.use_cache = True  # as its users want it
        config.save_pretrained(directory)
    else:
        save_adapter(loaded, request, directory)
    copy_tokenizer(request, directory)
    (directory / "README.md").write_text(card, encoding="utf-8")


def copy_tokenizer(request: RunRequest, directory: Path) -> None:
    """The base model's tokenizer, with the chat template that the rows were rendered with."""
    base = Path(request.base_model_path)
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, directory / name)
    if request.chat_template is not None:
        publish_template(request.chat_template, directory)


def save_adapter(loaded: LoadedModel, request: RunRequest, directory: Path) -> None:
    """The adapter as PEFT reads it, for the base as it is. Equal adapters give equal bytes."""
    assert isinstance(loaded.model, PeftModel)
    setup = request.setup
    weights = published_factors(loaded.model, get_peft_model_state_dict(loaded.model, save_embedding_layers=False))
    weights = published_modules(loaded.model, weights, getattr(torch, setup.dtype))
    tensors = {name: weights[name].detach().to("cpu").contiguous() for name in sorted(weights)}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = published_config(cast(LoraConfig, loaded.model.peft_config["default"]), setup)
    config.base_model_name_or_path = request.base_model
    config.revision = request.base_model_revision
    config.inference_mode = True
    config.save_pretrained(str(directory))
    path = directory / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("target_modules"):  # PEFT writes a set, in an order that changes by process
        settings["target_modules"] = sorted(settings["target_modules"])
    path.write_text(written_json(settings), encoding="utf-8")


def written_json(value: object) -> str:
    """JSON for people: indented, and ended by a line break."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
