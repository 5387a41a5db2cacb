"""Tiny base models with random weights, made in a second and used by every test that trains or loads one."""

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
_CORPUS = (
    "Hello! How can I help you today? My lamp does not glow. Unplug it, wait ten seconds and plug it in again.",
    "The order number is on the invoice. Please send us a photo of the box, and we will replace it at once.",
    "system user assistant What is the capital of Chile? Santiago. Numbers: 0 1 2 3 4 5 6 7 8 9 and so on.",
)


def make_tiny_model(
    directory: Path,
    *,
    family: str = "llama",
    vocab_size: int = 384,
    seed: int = 0,
    dtype: str = "bfloat16",
    **overrides: Any,
) -> Path:
    """Write a 2-layer model of `family` with hidden size 64 and a ChatML tokenizer of its own; returns `directory`.

    Files: config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json. Weights are
    drawn from `seed`. `overrides` go into the configuration, e.g. `num_hidden_layers=4`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(directory, vocab_size)
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": family not in ("mistral", "mixtral", "qwen3_moe", "olmoe"),
        **_FAMILY_SETTINGS.get(family, {}),
        **overrides,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.for_model(family, **settings), dtype=getattr(torch, dtype)
    )
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    return directory


def derive_model(tiny: Path, directory: Path, *, weights: str = "model.safetensors", **changes: Any) -> Path:
    """The model of another configuration, without real weights: planning reads their header alone."""
    directory.mkdir()
    config = json.loads((tiny / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    (directory / weights).write_bytes(tensors_header(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tiny / name).read_bytes())
    return directory


def tensors_header(config: dict[str, Any], dtype: str = "BF16") -> bytes:
    """The head of a safetensors file of this model, to which no weights need be attached: all in one tensor or two."""
    from planner.model.spec import ModelSpec

    spec = ModelSpec.from_config(config)
    tensors = {"model.weight": [spec.parameters - spec.lm_head_parameters]}
    if not spec.tie_word_embeddings:
        tensors["lm_head.weight"] = [spec.vocab_size, spec.hidden_size]
    described = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    header = json.dumps(described).encode()
    return len(header).to_bytes(8, "little") + header


_FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64, "tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 64},
    "granite": {
        "logits_scaling": 8.0,
        "embedding_multiplier": 4.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.5,
    },
}


def _write_tokenizer(directory: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHATML,
        "model_max_length": 2048,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
