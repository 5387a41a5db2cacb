"""Popular base models: the numbers of their `config.json` that decide parameters and memory."""

from collections.abc import Mapping
from dataclasses import dataclass

# Owners that let nobody download who has not accepted their licence on the hub.
_GATING_OWNERS = ("meta-llama", "google", "mistralai")


@dataclass(frozen=True)
class CatalogueModel:
    """One base model. `config` is what `ModelSpec.from_config` reads."""

    id: str
    hub_id: str
    title: str
    config: Mapping[str, object]

    @property
    def is_gated(self) -> bool:
        """Whether its owner is known to ask for an accepted licence first. What the hub itself says goes before."""
        return self.hub_id.startswith(tuple(f"{owner}/" for owner in _GATING_OWNERS))


def _model(
    hub_id: str,
    model_type: str,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    vocab: int,
    positions: int,
    tied: bool,
    **more: object,
) -> CatalogueModel:
    name = hub_id.split("/")[1]
    config = {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        **more,
    }
    return CatalogueModel(name.lower(), hub_id, name.replace("-", " "), config)


_MODELS = (
    _model("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", 576, 1536, 30, 9, 3, 49152, 8192, True),
    _model("HuggingFaceTB/SmolLM2-360M-Instruct", "llama", 960, 2560, 32, 15, 5, 49152, 8192, True),
    _model("HuggingFaceTB/SmolLM2-1.7B-Instruct", "llama", 2048, 8192, 24, 32, 32, 49152, 8192, True),
    _model("HuggingFaceTB/SmolLM3-3B", "smollm3", 2048, 11008, 36, 16, 4, 128256, 65536, True),
    _model("meta-llama/Llama-2-7b-hf", "llama", 4096, 11008, 32, 32, 32, 32000, 4096, False),
    _model("meta-llama/Llama-2-13b-hf", "llama", 5120, 13824, 40, 40, 40, 32000, 4096, False),
    _model("meta-llama/Llama-2-70b-hf", "llama", 8192, 28672, 80, 64, 8, 32000, 4096, False),
    _model("meta-llama/Llama-3.1-8B", "llama", 4096, 14336, 32, 32, 8, 128256, 131072, False),
    _model("meta-llama/Llama-3.1-8B-Instruct", "llama", 4096, 14336, 32, 32, 8, 128256, 131072, False),
    _model("meta-llama/Llama-3.2-1B-Instruct", "llama", 2048, 8192, 16, 32, 8, 128256, 131072, True, head_dim=64),
    _model("meta-llama/Llama-3.2-3B-Instruct", "llama", 3072, 8192, 28, 24, 8, 128256, 131072, True, head_dim=128),
    _model("meta-llama/Llama-3.3-70B-Instruct", "llama", 8192, 28672, 80, 64, 8, 128256, 131072, False),
    _model("mistralai/Mistral-7B-v0.1", "mistral", 4096, 14336, 32, 32, 8, 32000, 32768, False, sliding_window=4096),
    _model("mistralai/Mistral-7B-Instruct-v0.3", "mistral", 4096, 14336, 32, 32, 8, 32768, 32768, False),
    _model(
        "mistralai/Mistral-Nemo-Instruct-2407", "mistral", 5120, 14336, 40, 32, 8, 131072, 131072, False, head_dim=128
    ),
    _model(
        "mistralai/Mistral-Small-24B-Instruct-2501", "mistral", 5120, 32768, 40, 32, 8, 131072, 32768, False,
        head_dim=128,
    ),
    _model(
        "mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral", 4096, 14336, 32, 32, 8, 32000, 32768, False,
        num_local_experts=8, num_experts_per_tok=2,
    ),
    _model("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", 896, 4864, 24, 14, 2, 151936, 32768, True),
    _model("Qwen/Qwen2.5-1.5B-Instruct", "qwen2", 1536, 8960, 28, 12, 2, 151936, 32768, True),
    _model("Qwen/Qwen2.5-7B-Instruct", "qwen2", 3584, 18944, 28, 28, 4, 152064, 32768, False),
    _model("Qwen/Qwen2.5-14B-Instruct", "qwen2", 5120, 13824, 48, 40, 8, 152064, 32768, False),
    _model("Qwen/Qwen2.5-32B-Instruct", "qwen2", 5120, 27648, 64, 40, 8, 152064, 32768, False),
    _model("Qwen/Qwen2.5-72B-Instruct", "qwen2", 8192, 29568, 80, 64, 8, 152064, 32768, False),
    _model("Qwen/Qwen3-0.6B", "qwen3", 1024, 3072, 28, 16, 8, 151936, 40960, True, head_dim=128),
    _model("Qwen/Qwen3-4B", "qwen3", 2560, 9728, 36, 32, 8, 151936, 40960, True, head_dim=128),
    _model("Qwen/Qwen3-8B", "qwen3", 4096, 12288, 36, 32, 8, 151936, 40960, False, head_dim=128),
    _model("Qwen/Qwen3-32B", "qwen3", 5120, 25600, 64, 64, 8, 151936, 40960, False, head_dim=128),
    _model(
        "Qwen/Qwen3-30B-A3B", "qwen3_moe", 2048, 6144, 48, 32, 4, 151936, 40960, False,
        head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    ),
    _model("google/gemma-2b-it", "gemma", 2048, 16384, 18, 8, 1, 256000, 8192, True, head_dim=256),
    _model("google/gemma-7b-it", "gemma", 3072, 24576, 28, 16, 16, 256000, 8192, True, head_dim=256),
    _model("google/gemma-2-2b-it", "gemma2", 2304, 9216, 26, 8, 4, 256000, 8192, True, head_dim=256),
    _model("google/gemma-2-9b-it", "gemma2", 3584, 14336, 42, 16, 8, 256000, 8192, True, head_dim=256),
    _model("google/gemma-3-270m-it", "gemma3_text", 640, 2048, 18, 4, 1, 262144, 32768, True, head_dim=256),
    _model("google/gemma-3-1b-it", "gemma3_text", 1152, 6912, 26, 4, 1, 262144, 32768, True, head_dim=256),
    _model("microsoft/Phi-3-mini-4k-instruct", "phi3", 3072, 8192, 32, 32, 32, 32064, 4096, False),
    _model("microsoft/phi-4", "phi3", 5120, 17920, 40, 40, 10, 100352, 16384, False),
    _model("ibm-granite/granite-3.1-2b-instruct", "granite", 2048, 8192, 40, 32, 8, 49155, 131072, True),
    _model("ibm-granite/granite-3.1-8b-instruct", "granite", 4096, 12800, 40, 32, 8, 49155, 131072, True),
    _model("allenai/OLMo-2-1124-7B-Instruct", "olmo2", 4096, 11008, 32, 32, 32, 100352, 4096, False),
    _model(
        "allenai/OLMoE-1B-7B-0924-Instruct", "olmoe", 2048, 1024, 16, 16, 16, 50304, 4096, False,
        num_experts=64, num_experts_per_tok=8,
    ),
)  # fmt: skip

_BY_NAME = {name: model for model in _MODELS for name in (model.id, model.hub_id.lower())}


def models() -> tuple[CatalogueModel, ...]:
    """All catalogued models."""
    return _MODELS


def find_model(name: str) -> CatalogueModel | None:
    """The model with this catalogue id or hub id (case does not matter); None if it is not catalogued."""
    return _BY_NAME.get(name.lower())
