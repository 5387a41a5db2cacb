"""Parameter counts equal those of the models that transformers builds."""

import pytest

from planner.errors import InvalidConfigurationError, InvalidSetupError, UnsupportedArchitectureError
from planner.model.families import FAMILIES
from planner.model.spec import ALL_LINEAR, EXPERT_COUNTS, ModelSpec

SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
REAL_SIZES = [
    {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    {"model_type": "mixtral"},
    {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "moe_intermediate_size": 768,
    },
    {"model_type": "gemma2"},
    {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_key_value_heads": 1},
    {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    {"model_type": "phi3"},
    {"model_type": "smollm3"},
]


def build_on_meta(config):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


def variants():
    for model_type in FAMILIES:
        yield {"model_type": model_type, **SMALL}
        yield {"model_type": model_type, **SMALL, "tie_word_embeddings": True}
        if model_type != "olmoe":  # its modelling code ties the query norm to hidden_size, so no such model runs
            yield {"model_type": model_type, **SMALL, "head_dim": 16, "tie_word_embeddings": False}
        key = FAMILIES[model_type].attention_bias_key or FAMILIES[model_type].query_bias_key
        if key:
            yield {"model_type": model_type, **SMALL, key: not FAMILIES[model_type].query_bias_key}
        if FAMILIES[model_type].mlp_bias_key:
            yield {"model_type": model_type, **SMALL, "mlp_bias": True}
        if FAMILIES[model_type].sparse_layout:
            yield {"model_type": model_type, **SMALL, "decoder_sparse_step": 2, "mlp_only_layers": [1]}
        if FAMILIES[model_type].experts_key:
            yield {"model_type": model_type, **SMALL, FAMILIES[model_type].experts_key: 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize("config", [*variants(), *REAL_SIZES], ids=lambda config: "-".join(map(str, config.values())))
def test_counts_every_parameter_that_transformers_builds(config):
    model = build_on_meta(config)
    spec = ModelSpec.from_config(config)
    roles = dict.fromkeys(("embedding", "lm_head", "norm", "router", "expert", "linear"), 0)
    for name, parameter in model.named_parameters():
        roles[role_of(name)] += parameter.numel()
    assert spec.parameters == sum(roles.values())
    assert roles == {
        "embedding": spec.embedding_parameters,
        "lm_head": spec.lm_head_parameters,
        "norm": spec.norm_parameters,
        "router": spec.router_parameters,
        "expert": spec.expert_parameters,
        "linear": spec.linear_parameters,
    }


def role_of(name):
    if "embed_tokens" in name:
        return "embedding"
    if name.startswith("lm_head"):
        return "lm_head"
    if "norm" in name:
        return "norm"
    if ".mlp.gate.weight" in name or "shared_expert_gate" in name:
        return "router"
    return "expert" if ".experts." in name else "linear"


# PEFT 0.21 reads an attribute that transformers 5.23 has deprecated.
peft_on_transformers = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@peft_on_transformers
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "olmo2", "gemma3_text"])
def test_adapter_parameters_equal_those_that_peft_adds(model_type):
    from peft import LoraConfig, get_peft_model

    config = {"model_type": model_type, **SMALL}
    model = get_peft_model(build_on_meta(config), LoraConfig(r=4, target_modules="all-linear"))
    added = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    assert ModelSpec.from_config(config).lora_parameters(4, (ALL_LINEAR,)) == added


@peft_on_transformers
def test_adapters_on_experts_equal_those_that_peft_adds_to_fused_parameters():
    from peft import LoraConfig, get_peft_model

    config = {"model_type": "mixtral", **SMALL}
    targets = LoraConfig(
        r=4,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    model = get_peft_model(build_on_meta(config), targets)
    added = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    assert ModelSpec.from_config(config).lora_parameters(4, (ALL_LINEAR,)) == added


def test_adapters_on_a_subset_count_only_that_subset():
    spec = ModelSpec.from_config({"model_type": "mistral"})
    assert spec.lora_parameters(16, ("q_proj", "k_proj", "v_proj", "o_proj")) == 13_631_488
    assert spec.lora_parameters(16, ("q_proj", "lm_head")) == 32 * 16 * 8192 + 16 * (4096 + 32000)


def test_unknown_architecture_names_itself_and_what_is_supported():
    with pytest.raises(UnsupportedArchitectureError, match=r"'mamba'.*llama.*olmo2"):
        ModelSpec.from_config({"model_type": "mamba"})


@pytest.mark.parametrize(
    "broken",
    [{"hidden_size": 0}, {"vocab_size": "many"}, {"num_key_value_heads": 5}, {"num_hidden_layers": True}],
)
def test_impossible_numbers_are_refused(broken):
    with pytest.raises(InvalidConfigurationError, match=r"config\.json gives"):
        ModelSpec.from_config({"model_type": "llama", **broken})


def test_unknown_target_module_is_named_with_the_known_ones():
    spec = ModelSpec.from_config({"model_type": "phi3"})
    with pytest.raises(InvalidSetupError, match=r"q_proj.*qkv_proj"):
        spec.lora_parameters(8, ("q_proj",))
    with pytest.raises(InvalidSetupError, match="lora_rank is 0"):
        spec.lora_parameters(0, (ALL_LINEAR,))


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "olmoe", "mixtral"])
def test_experts_are_counted_under_both_names_that_transformers_writes(family):
    older, newer = (ModelSpec.from_config({"model_type": family, name: 6}) for name in EXPERT_COUNTS)
    assert older.groups == newer.groups
    assert {group.experts.count for group in older.groups if group.experts} == {6}
