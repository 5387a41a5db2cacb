"""A model that the planner has no family of, counted on the built modules: shapes by role, no weights."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from planner.model.spec import Experts, LayerGroup, Linear, ModelSpec
from planner.setup import Method, TrainingSetup
from worker.training.dry_run.fake_model import build_base, read_config
from worker.training.model.loading import ROUTERS, decoder_layers


def introspect(config: Mapping[str, Any]) -> ModelSpec:
    """Every parameter of the model that transformers builds from a `config.json`, by role.

    Raises InvalidModelError where it cannot be built as a causal language model with a list of decoder layers.
    """
    read = read_config(config)
    model = build_base(read, TrainingSetup(Method.FULL))
    text: PreTrainedConfig = read.get_text_config()
    layers = decoder_layers(model)
    kinds = Counter(_group(layer, text) for layer in layers)
    groups = tuple(LayerGroup(count, *kind) for kind, count in kinds.items())
    embedding = model.get_input_embeddings().get_parameter("weight")
    heads = int(text.num_attention_heads)
    head_dim = getattr(text, "head_dim", None) or int(text.hidden_size) // heads
    spec = ModelSpec(
        model_type=str(text.model_type),
        vocab_size=embedding.shape[0],
        hidden_size=int(text.hidden_size),
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        num_key_value_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(head_dim),
        max_position_embeddings=int(getattr(text, "max_position_embeddings", 0) or 2048),
        sliding_window=None,
        tie_word_embeddings=_is_tied(model),
        groups=groups,
    )
    counted = sum(parameter.numel() for parameter in model.parameters())
    return _with_rest(spec, counted - spec.parameters)


def _with_rest(spec: ModelSpec, rest: int) -> ModelSpec:
    return ModelSpec(**{**{name: getattr(spec, name) for name in spec.__dataclass_fields__}, "other_parameters": rest})


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight


def _group(layer: nn.Module, config: PreTrainedConfig) -> tuple[tuple[Linear, ...], int, Experts | None, int]:
    linears, routers, experts = [], 0, list[tuple[str, torch.Size]]()
    for path, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            if path.endswith(ROUTERS):
                routers += sum(parameter.numel() for parameter in module.parameters())
            else:
                name = path.rpartition(".")[2]
                linears.append(Linear(name, module.in_features, module.out_features, module.bias is not None))
        experts += [(name, p.shape) for name, p in module.named_parameters(recurse=False) if p.ndim == 3]
    routed = _experts(experts, config)
    whole = sum(parameter.numel() for parameter in layer.parameters())
    known = sum(linear.parameters for linear in linears) + routers + (routed.parameters if routed else 0)
    return tuple(linears), whole - known, routed, routers


def _experts(parameters: list[tuple[str, torch.Size]], config: PreTrainedConfig) -> Experts | None:
    if not parameters:
        return None
    per_token = int(getattr(config, "num_experts_per_tok", None) or 1)
    linears = tuple(Linear(name, shape[2], shape[1]) for name, shape in parameters)
    return Experts(parameters[0][1][0], per_token, linears)
