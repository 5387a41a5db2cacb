"""Estimates against published measurements, and the laws that any estimate obeys."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import constants as c
from planner.catalogue import models
from planner.devices import Device, parse_gpu
from planner.errors import InvalidSetupError
from planner.memory.estimate import estimate_memory, nf4_bytes_per_parameter
from planner.model.spec import ModelSpec
from planner.published.cases import read_case
from planner.published.trainers import Loss, PublishedTrainer
from planner.setup import Method, TrainingSetup

CASES = Path(__file__).parents[3] / "bench" / "published_cases.jsonl"
CPU = Device(0, "cpu", "CPU, 2 cores", "cpu", 24 << 30, 20 << 30, None, "cpu", 2)
MISTRAL = ModelSpec.from_config({"model_type": "mistral"})
LORA = TrainingSetup(
    Method.LORA, lora_rank=16, lora_alpha=32, lora_target_modules=("all-linear",), adapter_dtype="float32"
)
SPECS = {model.id: ModelSpec.from_config(model.config) for model in models()}


@pytest.fixture(scope="module")
def scored():
    """(id, error of the peak, error of the static part or None) for each published run."""
    rows = [json.loads(line) for line in CASES.read_text().splitlines()]
    return [score(row) for row in rows]


def score(row):
    case = read_case(row)
    estimate, measured = estimate_memory(case.spec, case.setup, case.device, case.backend), row["measured"]
    static = measured["static_allocated_bytes"]
    return (
        row["id"],
        estimate.peak_allocated_bytes / measured["peak_allocated_bytes"] - 1,
        estimate.static_allocated_bytes / static - 1 if static else None,
    )


def test_exact_published_runs_are_matched(scored):
    exact = [row for row in scored if row[0].startswith("fms-")]
    assert len(exact) == 45
    assert mean(abs(error) for _, error, _ in exact) <= 0.02
    assert max(abs(error) for _, error, _ in exact) <= 0.05
    assert min(error for _, error, _ in exact) >= -0.02
    assert max(abs(static) for _, _, static in exact) <= 0.005


def test_other_peoples_loops_are_matched_roughly(scored):
    other = [error for name, error, _ in scored if name.startswith("tt-")]
    assert len(other) == 8
    assert mean(map(abs, other)) <= 0.08


def test_nf4_with_double_quantization_takes_4_127_bits():
    assert nf4_bytes_per_parameter() == pytest.approx(0.515869, abs=1e-6)


def test_full_fine_tuning_in_bf16_keeps_six_bytes_a_parameter():
    estimate = estimate_memory(MISTRAL, TrainingSetup(Method.FULL, max_length=64))
    kept = estimate.static_allocated_bytes - estimate.inputs_bytes - estimate.library_workspaces_bytes
    assert kept == 6 * MISTRAL.parameters


def test_foreach_step_holds_a_temporary_of_all_parameters():
    fused = estimate_memory(MISTRAL, TrainingSetup(Method.FULL, max_length=64))
    foreach = estimate_memory(MISTRAL, TrainingSetup(Method.FULL, max_length=64, optimizer="adamw_torch"))
    assert fused.optimizer_step_bytes == 0
    assert foreach.optimizer_step_bytes == 2 * MISTRAL.parameters
    assert foreach.peak_allocated_bytes >= foreach.static_allocated_bytes + 4 * MISTRAL.parameters


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"),
    [("adamw_torch", 8), ("adamw_torch_fused", 8), ("adamw_bnb_8bit", 2 * (1 + 4 / 256)), ("paged_adamw_8bit", 0)],
)
def test_optimizer_state_on_a_gpu(optimizer, bytes_per_parameter):
    estimate = estimate_memory(MISTRAL, replace(LORA, optimizer=optimizer))
    parameters = MISTRAL.lora_parameters(16, ("all-linear",))
    assert estimate.optimizer_state_bytes == pytest.approx(bytes_per_parameter * parameters, rel=1e-6)


def test_paged_states_do_occupy_memory_on_a_cpu():
    assert estimate_memory(MISTRAL, replace(LORA, optimizer="paged_adamw_8bit"), CPU).optimizer_state_bytes > 0


def test_accumulation_keeps_the_gradients_of_earlier_micro_batches():
    full = TrainingSetup(Method.FULL, max_length=2048, gradient_checkpointing=True, per_device_train_batch_size=16)
    once = estimate_memory(MISTRAL, full)
    twice = estimate_memory(MISTRAL, replace(full, gradient_accumulation_steps=2))
    assert twice.peak_allocated_bytes > once.peak_allocated_bytes + MISTRAL.parameters


def test_qlora_quantizes_experts_but_neither_router_nor_embeddings():
    mixtral = ModelSpec.from_config({"model_type": "mixtral"})
    estimate = estimate_memory(mixtral, replace(LORA, method=Method.QLORA, lora_target_modules=("q_proj",)))
    assert 24e9 < estimate.base_weights_bytes < 24.6e9


def test_dropout_keeps_dropped_copies_of_adapted_inputs():
    without, with_dropout = (estimate_memory(MISTRAL, replace(LORA, lora_dropout=p)) for p in (0.0, 0.1))
    assert with_dropout.saved_activations_bytes > without.saved_activations_bytes


def test_eager_attention_grows_with_the_square_of_the_length():
    eager = replace(LORA, attn_implementation="eager")
    short, long = (estimate_memory(MISTRAL, replace(eager, max_length=n)).saved_activations_bytes for n in (1024, 4096))
    assert long > 8 * short
    assert long > 2 * estimate_memory(MISTRAL, replace(LORA, max_length=4096)).saved_activations_bytes


def test_full_logits_cost_their_float32_copies():
    eager = estimate_memory(MISTRAL, LORA, backend=PublishedTrainer("transformers", "4.48.1", Loss.EAGER))
    assert eager.loss_phase_bytes >= 14 * MISTRAL.vocab_size * 2047
    assert estimate_memory(MISTRAL, LORA).loss_phase_bytes < eager.loss_phase_bytes / 2


def test_a_cpu_estimate_starts_from_the_process_itself():
    estimate = estimate_memory(SPECS["smollm2-135m-instruct"], replace(LORA, max_length=128), CPU)
    assert estimate.context_bytes == c.CPU_PROCESS_BYTES
    assert estimate.library_workspaces_bytes == 0
    assert estimate.device_bytes > c.CPU_PROCESS_BYTES + estimate.base_weights_bytes


def test_hopper_takes_larger_workspaces():
    ampere, hopper = (estimate_memory(MISTRAL, LORA, parse_gpu(name)) for name in ("A100-80GB", "H100-80GB"))
    assert ampere.library_workspaces_bytes == 17_039_360
    assert hopper.library_workspaces_bytes == 2 * 32 * 2**20


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rank": None},
        {"lora_target_modules": ("nonsense",)},
        {"max_length": 0},
        {"dtype": "int8"},
        {"optimizer": "lion"},
    ],
)
def test_setups_that_make_no_sense_are_refused(changes):
    with pytest.raises(InvalidSetupError):
        estimate_memory(MISTRAL, replace(LORA, **changes))


@pytest.mark.parametrize("trainer", [PublishedTrainer("megatron"), PublishedTrainer("transformers", "newest")])
def test_trainers_that_are_not_known_are_refused(trainer):
    with pytest.raises(InvalidSetupError):
        estimate_memory(MISTRAL, LORA, backend=trainer)


specs = st.sampled_from(sorted(SPECS)).map(SPECS.__getitem__)
setups = st.builds(
    TrainingSetup,
    method=st.sampled_from(Method),
    lora_rank=st.sampled_from([8, 16, 64]),
    lora_alpha=st.just(16),
    lora_target_modules=st.just(("all-linear",)),
    adapter_dtype=st.sampled_from(["float32", "bfloat16"]),
    per_device_train_batch_size=st.integers(1, 16),
    gradient_accumulation_steps=st.integers(1, 4),
    max_length=st.integers(64, 8192),
    packing=st.booleans(),
    gradient_checkpointing=st.booleans(),
    optimizer=st.sampled_from(["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit"]),
)
devices = st.sampled_from([None, CPU, parse_gpu("A100-80GB"), parse_gpu("H200")])


@given(specs, setups, devices, st.sampled_from(["per_device_train_batch_size", "max_length", "lora_rank"]))
def test_estimates_grow_with_batch_length_and_rank(spec, setup, device, field):
    larger = replace(setup, **{field: getattr(setup, field) * 2})
    small, large = estimate_memory(spec, setup, device), estimate_memory(spec, larger, device)
    for name in ("peak_allocated_bytes", "static_allocated_bytes", "device_bytes", "required_bytes"):
        assert getattr(small, name) <= getattr(large, name)


@given(specs, setups, devices)
def test_terms_are_positive_and_totals_hold_them(spec, setup, device):
    estimate = estimate_memory(spec, setup, device)
    assert all(value >= 0 for value in vars(estimate).values() if isinstance(value, int))
    assert estimate.static_allocated_bytes <= estimate.peak_allocated_bytes < estimate.device_bytes
    assert estimate.required_bytes == estimate.device_bytes + estimate.bound_bytes
    assert estimate == estimate_memory(spec, setup, device)


@given(specs, setups, devices)
def test_the_prediction_is_the_largest_of_loading_training_evaluating_and_saving(spec, setup, device):
    estimate = estimate_memory(spec, setup, device)
    trained = estimate.peak_allocated_bytes + estimate.allocator_slack_bytes
    loaded = estimate.base_weights_bytes + estimate.load_transient_bytes + estimate.library_workspaces_bytes
    evaluated = estimate.static_allocated_bytes + estimate.evaluation_phase_bytes
    saved = estimate.base_weights_bytes + estimate.saving_phase_bytes
    assert estimate.device_bytes == estimate.context_bytes + max(trained, loaded, evaluated, saved)
    assert 0 < estimate.evaluation_phase_bytes < estimate.peak_allocated_bytes - estimate.static_allocated_bytes
    context = 0 if device is CPU else estimate.context_bytes
    assert estimate.saving_phase_bytes > context + estimate.adapters_bytes


def test_a_small_step_needs_less_than_the_proof_of_its_export():
    """An export is reloaded beside the context of the process that trained it, and scored on whole logits."""
    llama = SPECS["llama-3.1-8b"]
    small = replace(LORA, method=Method.QLORA, max_length=64, gradient_checkpointing=True)
    estimate = estimate_memory(llama, small, parse_gpu("24GiB"))
    assert estimate.device_bytes == estimate.context_bytes + estimate.base_weights_bytes + estimate.saving_phase_bytes
    large = estimate_memory(llama, replace(small, max_length=4096), parse_gpu("24GiB"))
    assert large.device_bytes > large.context_bytes + large.base_weights_bytes + large.saving_phase_bytes


def test_evaluation_and_saving_of_other_loops_are_not_guessed():
    published = estimate_memory(MISTRAL, LORA, backend=PublishedTrainer("transformers", "4.48.1"))
    assert (published.evaluation_phase_bytes, published.saving_phase_bytes) == (0, 0)
