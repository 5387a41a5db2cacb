"""The base model and what is trained on it. Full, LoRA and QLoRA differ here and nowhere else."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from core.errors import InvalidModelError, TrainingError
from planner.memory.adapters import EMBEDDING, FACTORISED, HEAD
from planner.precision import FLOAT16
from planner.setup import VARLEN_FLASH, Method, TrainingSetup
from worker.training.model.attention import VARLEN_ATTENTION, takes_varlen
from worker.training.model.cross_entropy import LogitTransform
from worker.training.model.experts import expert_parameters, nf4_config
from worker.training.model.gradients import NamedParameters
from worker.training.model.initialization import initial_tensors, initialize
from worker.training.model.lora import cast_together, fuse_lora_layers
from worker.training.model.modules_to_save import train_in_base_dtype, trained_module

ALL_LINEAR = "all-linear"
_SMALL_MODEL_WEIGHTS = 5_000_000  # below, waking a second thread costs more than it computes
# Nothing routes a token or gates a whole expert in 4 bits, nor with an adapter.
ROUTERS = ("mlp.gate", "router", "shared_expert_gate")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be trained, and the parts of it that the loop touches."""

    model: nn.Module  # what is trained: the causal model itself, or PEFT's wrapper of it
    causal_model: PreTrainedModel
    backbone: nn.Module  # everything before the output projection
    head: nn.Module
    transform: LogitTransform
    parameters: NamedParameters  # the trained ones
    started: Mapping[str, torch.Tensor]  # what adapters started from, where that decides what they add to the base
    device: torch.device
    attn_implementation: str  # transformers' name, for what is not cut
    is_varlen: bool  # batches carry `bounds`


@dataclass(frozen=True)
class AdapterTargets:
    """What LoRA adapts, as PEFT wants it: linear layers by their full names, and fused expert parameters."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def load_base(directory: Path, setup: TrainingSetup, device: torch.device, attn_implementation: str) -> PreTrainedModel:
    """The base model on its device: 16-bit, or NF4 for QLoRA, quantized tensor by tensor as it is read.

    Raises InvalidModelError where there are no safetensors, or weights that are quantized already.
    """
    if not any(directory.glob("*.safetensors")):
        raise InvalidModelError(
            f"{directory.name} has no *.safetensors weights. Pickle weights are not loaded: convert the model first."
        )
    config = AutoConfig.from_pretrained(directory)
    if getattr(config, "quantization_config", None) is not None:
        raise InvalidModelError(
            f"The weights of {directory.name} are already quantized. Use the original 16-bit model as base."
        )
    dtype: torch.dtype = getattr(torch, setup.dtype)
    quantization = nf4_config(dtype) if setup.method is Method.QLORA else None
    if quantization is not None:
        skeleton = _skeleton(config)
        head = skeleton.get_output_embeddings()
        heads = [path for path, module in skeleton.named_modules() if module is head]
        quantization.llm_int8_skip_modules = [*heads, *ROUTERS]
    try:
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            quantization_config=quantization,
            attn_implementation=attn_implementation,
        )
    except ValueError as error:  # an architecture transformers does not know as a causal language model
        raise InvalidModelError(f"{directory.name} cannot be loaded as a causal language model: {error}") from error
    if setup.use_dora:
        _keep_layout(base)
    return base


def _keep_layout(base: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew for a CPU in evaluation: PEFT's own DoRA would then read the
    lengths of their rows from the packed bytes as if they were not."""
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_for_training(directory: Path, setup: TrainingSetup, seed: int, device: torch.device) -> LoadedModel:
    """The base model with what is trained on it, drawn from `seed`. Raises InvalidModelError or TrainingError."""
    if setup.dtype == FLOAT16 and (setup.method is Method.FULL or setup.adapter_dtype == FLOAT16):
        raise TrainingError(
            "In float16 only adapters in float32 can be trained: its weights lose small updates. Use lora or qlora.",
            code="unsupported_setup",
        )
    base = load_base(directory, setup, device, setup.unpacked_attention)
    torch.set_num_threads(threads_for(base))
    torch.manual_seed(seed)
    loaded = make_trainable(base, setup, device)
    _prove_head(loaded)
    return use_varlen_attention(loaded) if takes_varlen_attention(setup, device.type) else loaded


def takes_varlen_attention(setup: TrainingSetup, kind: str) -> bool:
    """Whether attention sees where the examples of a row end, on a kind of device: "cuda" or "cpu"."""
    return kind == "cpu" or setup.attn_implementation == VARLEN_FLASH


def use_varlen_attention(loaded: LoadedModel) -> LoadedModel:
    """The model with attention over examples end to end, or as it was where its code does not hand the cuts down."""
    loaded.causal_model.set_attn_implementation(VARLEN_ATTENTION)
    if takes_varlen(loaded.backbone, loaded.device):
        return replace(loaded, is_varlen=True)
    loaded.causal_model.set_attn_implementation(loaded.attn_implementation)
    return loaded


def make_trainable(base: PreTrainedModel, setup: TrainingSetup, device: torch.device) -> LoadedModel:
    """What is trained, put on a base model whose weights are there. Raises TrainingError."""
    base.config.use_cache = False
    model: nn.Module = base
    if setup.method is Method.FULL:
        base.requires_grad_(True)
    else:
        model = adapted = attach_adapter(base, lora_config(base, setup), _adapter_dtype(setup))
        initialize(adapted, setup)
        fuse_lora_layers(model)
        cast_together(model, base.base_model, getattr(torch, setup.dtype))
        train_in_base_dtype(model, getattr(torch, setup.dtype))
    if setup.gradient_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    return LoadedModel(
        model=model,
        causal_model=base,
        backbone=base.base_model,
        head=trained_module(base.get_output_embeddings()),
        transform=logit_transform(base.config),
        parameters=[(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad],
        started=initial_tensors(model),
        device=device,
        attn_implementation=setup.unpacked_attention,
        is_varlen=False,
    )


def threads_for(model: nn.Module) -> int:
    """Threads per operator: all cores this process may use, one for a model too small to share out."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    return 1 if weights < _SMALL_MODEL_WEIGHTS else len(os.sched_getaffinity(0))


def lora_config(base: PreTrainedModel, setup: TrainingSetup) -> LoraConfig:
    """PEFT's configuration of the planned adapter. Raises TrainingError where a target names nothing."""
    if setup.lora_rank is None or setup.lora_alpha is None:
        raise TrainingError("A LoRA plan needs lora_rank and lora_alpha.", code="unsupported_setup")
    targets = resolve_targets(base, setup.lora_target_modules or (ALL_LINEAR,))
    if not targets.modules and not targets.parameters:
        raise TrainingError(
            f"The layers of {base.config.model_type} have no linear modules to put an adapter on. Use method 'full'.",
            code="unsupported_setup",
        )
    if targets.parameters and setup.lora_dropout:
        raise TrainingError(
            "LoRA on fused experts cannot have dropout. Set lora_dropout to 0 or leave the experts out of the targets.",
            code="unsupported_setup",
        )
    if setup.use_dora or setup.init_lora_weights in FACTORISED:
        _check_variant(base, targets)
    whole = modules_to_save(base, setup.modules_to_save or ())
    return LoraConfig(
        r=setup.lora_rank,
        lora_alpha=setup.lora_alpha,
        lora_dropout=setup.lora_dropout,
        use_rslora=setup.use_rslora,
        target_modules=list(targets.modules),
        target_parameters=list(targets.parameters) or None,
        modules_to_save=list(whole) or None,
        ensure_weight_tying=bool(whole) and is_tied(base),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _check_variant(base: PreTrainedModel, targets: AdapterTargets) -> None:
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    named = [path for path in targets.modules if any(base.get_submodule(path) is end for end in ends)]
    refused = [*targets.parameters, *named]
    if refused:
        raise TrainingError(
            f"use_dora and init_lora_weights are for linear layers of the decoder, which {refused[0]} is not. "
            "Leave them out, or name other lora_target_modules.",
            code="unsupported_setup",
        )


def attach_adapter(base: PreTrainedModel, config: LoraConfig, dtype: torch.dtype) -> PeftModel:
    """A fresh adapter on the base, its weights in `dtype`, the base frozen.

    PEFT nests the wrappers of several parameters of one module, by name for quantized ones and by their order in the
    module otherwise. The nesting is part of the names in the adapter's file, so the module's order is imposed: a file
    from a 4-bit base then fits a 16-bit one.
    """
    if config.target_parameters:
        places = {name: place for place, (name, _) in enumerate(_skeleton(base.config).named_parameters())}
        config.target_parameters = [_InOrder(name, places[name]) for name in config.target_parameters]
    model: PeftModel = get_peft_model(base, config, autocast_adapter_dtype=False)
    if config.target_parameters:
        config.target_parameters = sorted(str(name) for name in config.target_parameters)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model


class _InOrder(str):
    """A name that sorts by its place in the model instead of by its letters."""

    place: int

    def __new__(cls, name: str, place: int) -> "_InOrder":
        ordered = super().__new__(cls, name)
        ordered.place = place
        return ordered

    def __lt__(self, other: str) -> bool:
        return self.place < other.place if isinstance(other, _InOrder) else super().__lt__(other)

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)


def modules_to_save(base: PreTrainedModel, names: tuple[str, ...]) -> tuple[str, ...]:
    """The modules that `embed_tokens` and `lm_head` stand for in this model, by their full names. A projection that is
    the embedding itself is trained with it, whichever is named. Raises TrainingError for any other name.
    """
    roles = {EMBEDDING: base.get_input_embeddings(), HEAD: base.get_output_embeddings()}
    unknown = [name for name in names if name not in roles]
    if unknown:
        raise TrainingError(
            f"modules_to_save names {', '.join(unknown)}; {' and '.join(roles)} can be trained whole.",
            code="unsupported_setup",
        )
    wanted = (EMBEDDING,) if names and is_tied(base) else names
    return tuple(path for path, module in base.named_modules() if any(module is roles[name] for name in wanted))


def is_tied(base: PreTrainedModel) -> bool:
    """Whether the output projection's weight is the embedding itself."""
    return base.get_output_embeddings().weight is base.get_input_embeddings().weight


def resolve_targets(base: PreTrainedModel, names: tuple[str, ...]) -> AdapterTargets:
    """Where the planner's names stand in this model: `q_proj`, `experts.down_proj`, `lm_head`, or `all-linear`.

    Raises TrainingError where a name fits nothing.
    """
    head = base.get_output_embeddings()
    linears = {path: m for path, m in base.named_modules() if isinstance(m, nn.Linear) and not path.endswith(ROUTERS)}
    experts = expert_parameters(base)
    embeddings = [path for path, module in base.named_modules() if isinstance(module, nn.Embedding)]
    modules, parameters = list[str](), list[str]()
    for name in names:
        if name == ALL_LINEAR:
            modules += [path for path, module in linears.items() if module is not head]
            parameters += experts
            continue
        fitting = [path for path in (*linears, *embeddings) if path == name or path.endswith(f".{name}")]
        inside = [path for path in experts if path.endswith(f".{name}") and name.startswith("experts.")]
        if not fitting and not inside:
            raise TrainingError(f"No layer of the base model is called {name!r}.", code="unsupported_setup")
        modules += fitting
        parameters += inside
    return AdapterTargets(tuple(dict.fromkeys(modules)), tuple(path for path in experts if path in parameters))


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers. Raises InvalidModelError where there is not exactly one."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not lists:
        raise InvalidModelError(
            "The architecture has no list of decoder layers.", code="unsupported_architecture", param="model"
        )
    return lists[0]


def logit_transform(config: PreTrainedConfig) -> LogitTransform:
    """What this family does between projection and softmax."""
    text = config.get_text_config()
    multiplier = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    return LogitTransform(multiplier, getattr(text, "final_logit_softcapping", None))


@contextmanager
def plain_attention(loaded: LoadedModel) -> Iterator[None]:
    """Within, the model attends as transformers does: for generation, whose batches carry no bounds."""
    if not loaded.is_varlen:
        yield
        return
    loaded.causal_model.set_attn_implementation(loaded.attn_implementation)
    try:
        yield
    finally:
        loaded.causal_model.set_attn_implementation(VARLEN_ATTENTION)


def _adapter_dtype(setup: TrainingSetup) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, setup.adapter_dtype or "float32")
    return dtype


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights: its modules and parameters as they are declared."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _prove_head(loaded: LoadedModel) -> None:
    """Compare our path from hidden states to logits with the model's own on a few tokens.

    A family that does something else there would train on a wrong loss without any sign of it. Raises
    InvalidModelError.
    """
    ids = torch.arange(4, device=loaded.device)[None] % loaded.causal_model.config.get_text_config().vocab_size
    was_training = loaded.model.training
    loaded.model.eval()
    with torch.inference_mode():
        expected = loaded.causal_model(input_ids=ids, use_cache=False).logits.float()
        hidden = loaded.backbone(input_ids=ids, use_cache=False).last_hidden_state
        ours = loaded.transform.apply(loaded.head(hidden).float())
        difference = (ours - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    loaded.model.train(was_training)
    if not difference < 0.02:  # bfloat16 rounds to 0.4%; softcap and scale are applied there in another precision
        raise InvalidModelError(
            f"{type(loaded.causal_model).__name__} does not compute its logits as this trainer does "
            f"(they differ by {float(difference):.1%}). The architecture is not supported."
        )
