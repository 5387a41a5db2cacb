"""Variants of LoRA and modules trained whole: counted, chosen on request only, refused where they cannot be right."""

from dataclasses import replace

import pytest

from planner.catalogue import models
from planner.devices import Device, parse_gpu
from planner.errors import InvalidSetupError
from planner.memory.adapters import adapter_parameters, kept_bytes, trained_parameters, whole_parameters
from planner.memory.estimate import estimate_memory
from planner.memory.optimizers import OPTIMIZERS, optimizer_named
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.policy.candidates import Question
from planner.policy.choice import plan
from planner.setup import InitLoraWeights, Method, TrainingSetup
from planner.statistics import DatasetStatistics
from planner.wording import sentences

SPECS = {model.id: ModelSpec.from_config(model.config) for model in models()}
LLAMA, TIED, MIXTURE = (SPECS[name] for name in ("llama-3.1-8b", "llama-3.2-1b-instruct", "mixtral-8x7b-instruct-v0.1"))
DATA = DatasetStatistics(1000, 512_000, 256_000, (512,) * 100)
LORA = TrainingSetup(
    Method.LORA, lora_rank=16, lora_alpha=32, lora_target_modules=("all-linear",), adapter_dtype="float32"
)
PISSA, OLORA = InitLoraWeights.PISSA, InitLoraWeights.OLORA


def planned(spec, gpu="A100-80GB", **requested):
    return plan(Question(spec, DATA, [parse_gpu(gpu)], RequestedConfig(**requested), {"default": 2000}))


def test_what_is_trained_is_counted():
    plain = adapter_parameters(LLAMA, LORA)
    assert plain == LLAMA.lora_parameters(16, ("all-linear",))
    rows = 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096)
    dora = replace(LORA, use_dora=True)
    assert (adapter_parameters(LLAMA, dora), kept_bytes(LLAMA, dora)) == (plain + rows, 2 * plain + 4 * rows)
    assert kept_bytes(LLAMA, replace(LORA, adapter_dtype="bfloat16")) == 0
    head = replace(LORA, lora_target_modules=("lm_head", "embed_tokens"))
    assert kept_bytes(LLAMA, head) == 2 * 16 * (128_256 + 4096)
    assert kept_bytes(LLAMA, replace(LORA, init_lora_weights=PISSA)) == 4 * plain
    both = replace(LORA, modules_to_save=("embed_tokens", "lm_head"))
    assert whole_parameters(LLAMA, both) == 2 * 128_256 * 4096
    assert trained_parameters(LLAMA, both) == plain + whole_parameters(LLAMA, both)
    for names in (("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")):
        assert whole_parameters(TIED, replace(LORA, modules_to_save=names)) == 128_256 * 2048


def test_a_whole_module_costs_sixteen_bytes_a_parameter_between_steps():
    """A float32 copy, two float32 states; the gradient comes and goes."""
    plain, whole = (estimate_memory(LLAMA, replace(LORA, modules_to_save=names)) for names in (None, ("lm_head",)))
    parameters = 128_256 * 4096
    assert whole.static_allocated_bytes - plain.static_allocated_bytes == 12 * parameters
    assert whole.gradients_bytes - plain.gradients_bytes == 4 * parameters
    assert whole.base_weights_bytes == plain.base_weights_bytes


def test_variants_are_chosen_only_when_asked_for():
    setup = planned(LLAMA).setup
    assert (setup.use_dora, setup.use_rslora, setup.modules_to_save) == (False, False, None)
    assert setup.init_lora_weights is InitLoraWeights.DEFAULT


@pytest.mark.parametrize(
    ("requested", "sentence"),
    [
        ({"use_rslora": True}, "Rank-stabilised: adapters are scaled by"),
        ({"use_dora": True}, "DoRA: 1,376,256 lengths of weight rows"),
        ({"init_lora_weights": PISSA}, "largest singular directions of each weight (PiSSA)"),
        ({"init_lora_weights": OLORA}, "QR decomposition of each weight (OLoRA)"),
        ({"modules_to_save": ("lm_head",)}, "Trained whole beside the adapters: lm_head with 525,336,576 parameters"),
    ],
)
def test_a_variant_is_planned_and_explained(requested, sentence):
    chosen = planned(LLAMA, **requested)
    assert chosen.setup.method is Method.LORA, "an adapter was asked for, so full fine-tuning is not considered"
    assert any(sentence in reason for reason in sentences(chosen.reasons))
    for name, value in requested.items():
        assert getattr(chosen.setup, name) == value
    plain = replace(chosen.setup, use_dora=False, init_lora_weights=InitLoraWeights.DEFAULT, modules_to_save=None)
    needed, without = (estimate_memory(LLAMA, setup).required_bytes for setup in (chosen.setup, plain))
    assert needed == without if "use_rslora" in requested else needed > without


def test_rank_stabilised_adapters_share_one_alpha():
    alphas = {planned(LLAMA, use_rslora=True, lora_rank=rank).setup.lora_alpha for rank in (8, 64, 256)}
    assert alphas == {16}
    assert planned(LLAMA, use_rslora=True, lora_alpha=40).setup.lora_alpha == 40


def test_states_of_whole_modules_shrink_only_where_they_must():
    requested = {"method": Method.QLORA, "modules_to_save": ("embed_tokens", "lm_head"), "lora_rank": 8}
    assert planned(LLAMA, **requested).setup.optimizer == "adamw_torch_fused"
    assert planned(LLAMA, "24GiB", **requested).setup.optimizer == "paged_adamw_8bit"


@pytest.mark.parametrize(
    ("spec", "requested", "message"),
    [
        (LLAMA, {"method": Method.FULL, "use_dora": True}, "trains no adapter, but use_dora is set"),
        (LLAMA, {"method": Method.FULL, "modules_to_save": ("lm_head",)}, "but modules_to_save is set"),
        (MIXTURE, {"use_dora": True}, "name lora_target_modules without experts: q_proj"),
        (MIXTURE, {"init_lora_weights": PISSA}, "init_lora_weights pissa is for linear layers"),
        (LLAMA, {"use_dora": True, "lora_target_modules": ("q_proj", "lm_head")}, "train lm_head whole"),
        (LLAMA, {"modules_to_save": ("q_proj",)}, "modules_to_save names q_proj; embed_tokens and lm_head"),
        (LLAMA, {"modules_to_save": ()}, "modules_to_save names nothing"),
        (
            LLAMA,
            {"modules_to_save": ("lm_head",), "lora_target_modules": ("q_proj", "lm_head")},
            "cannot be adapted and trained whole",
        ),
        (
            TIED,
            {"modules_to_save": ("embed_tokens",), "lora_target_modules": ("q_proj", "lm_head")},
            "lm_head of llama is embed_tokens itself",
        ),
        (LLAMA, {"optim": "lion"}, "optim is 'lion'"),
    ],
)
def test_what_cannot_be_right_is_refused_with_what_to_choose(spec, requested, message):
    with pytest.raises(InvalidSetupError) as caught:
        planned(spec, **requested)
    assert message in str(caught.value)


def test_experts_may_stay_out_of_the_targets():
    chosen = planned(MIXTURE, use_dora=True, lora_target_modules=("q_proj", "v_proj"))
    assert chosen.setup.use_dora


@pytest.mark.parametrize(("optim", "bytes_per_parameter"), [("adamw_torch_fused", 4), ("paged_adamw_32bit", 8)])
def test_full_fine_tuning_may_keep_its_states_in_float32(optim, bytes_per_parameter):
    chosen = planned(TIED, method=Method.FULL, optim=optim)
    assert (chosen.setup.dtype, chosen.setup.optimizer) == ("bfloat16", optim)
    held = replace(optimizer_named(optim), paged=False)
    assert held.state_bytes(1000, 2) == 1000 * bytes_per_parameter


def test_every_optimizer_that_is_offered_is_trained_and_estimated():
    from worker.training.loop import optimizer

    assert set(OPTIMIZERS) == {*optimizer._TORCH, *optimizer._BITSANDBYTES}
    for name in OPTIMIZERS:
        assert estimate_memory(LLAMA, replace(LORA, optimizer=name)).required_bytes > 0


def test_pissa_takes_time_to_start_on_a_cpu():
    def loading(**requested):
        cpu = Device(0, "cpu", "CPU, 2 cores", "cpu", 64 << 30, 60 << 30, None, "cpu", 2)
        return plan(
            Question(TIED, DATA, [cpu], RequestedConfig(lora_rank=16, **requested), {"default": 600})
        ).speed.loading_seconds

    products = 34 * 2 * 16 * sum(count * linear.weight_parameters for count, linear in TIED.targeted(("all-linear",)))
    assert loading(init_lora_weights=PISSA) - loading() == pytest.approx(products / (2 * 1.4e10))
    assert loading(init_lora_weights=OLORA) == loading()
