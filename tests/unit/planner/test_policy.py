"""The policy: what it must choose, what it must refuse, and the laws it obeys everywhere."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalogue import models
from planner.devices import Device, parse_gpu
from planner.errors import DoesNotFitError, InvalidSetupError
from planner.memory.estimate import Correction, estimate_memory
from planner.model.spec import ModelSpec
from planner.options import Priority, RequestedConfig
from planner.policy.candidates import LADDER, Question
from planner.policy.choice import plan, step_down
from planner.policy.comparison import compare_methods
from planner.setup import Hyperparameters, Method, Quantization, TrainingSetup
from planner.statistics import DatasetStatistics
from planner.throughput import Answering, estimate_speed
from planner.wording import sentence, sentences

PRICES = {"default": 2000, "cpu": 600}
CPU = Device(0, "cpu", "CPU, 2 cores", "cpu", 24 << 30, 20 << 30, None, "cpu", 2)
# The first LLaMA (Touvron et al. 2023, table 2) is too old for the catalogue.
LLAMA_65B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
SPECS = {model.id: ModelSpec.from_config(model.config) for model in models()} | {
    "llama-65b": ModelSpec.from_config(LLAMA_65B)
}


def rows(count, length, trained=0.5):
    lengths = tuple(sorted(max(1, length // 2 + length * i // 100) for i in range(min(count, 100))))
    mean = sum(lengths) / len(lengths)
    return DatasetStatistics(count, int(count * mean), int(count * mean * trained), lengths)


SMALL, LARGE = rows(1000, 512), rows(200_000, 400)


def planned(model, gpu, statistics=SMALL, **requested):
    device = gpu if isinstance(gpu, Device) else parse_gpu(gpu)
    return plan(Question(SPECS[model], statistics, [device], RequestedConfig(**requested), PRICES))


@pytest.mark.parametrize(
    ("model", "gpu", "statistics", "method"),
    [
        ("mixtral-8x7b-instruct-v0.1", "RTX A6000", SMALL, Method.QLORA),
        ("mixtral-8x7b-instruct-v0.1", "A100-40GB", SMALL, Method.QLORA),
        ("llama-2-70b-hf", "A100-80GB", SMALL, Method.QLORA),
        ("llama-2-70b-hf", "L40S", SMALL, Method.QLORA),
        ("llama-3.3-70b-instruct", "RTX A6000", SMALL, Method.QLORA),
        ("llama-65b", "RTX A6000", SMALL, Method.QLORA),
        ("llama-65b", "L40S", SMALL, Method.QLORA),
        ("smollm2-135m-instruct", CPU, rows(120, 90), Method.LORA),
        ("llama-3.1-8b", "RTX 4090", rows(1000, 512), Method.LORA),
        ("llama-3.1-8b", "RTX 4090", rows(1000, 16_000), Method.QLORA),
        ("llama-3.1-8b", "A100-80GB", SMALL, Method.LORA),
        ("llama-3.1-8b", "H200", SMALL, Method.LORA),
        ("llama-3.1-8b", "H200", LARGE, Method.FULL),
    ],
)
def test_known_models_on_known_gpus(model, gpu, statistics, method):
    chosen = planned(model, gpu, statistics)
    assert chosen.setup.method is method
    assert chosen.memory.required_bytes <= chosen.device.free_bytes


@pytest.mark.parametrize("model", ["llama-65b", "llama-2-70b-hf", "llama-3.3-70b-instruct"])
def test_a_workable_length_remains_for_70b_on_48_gigabytes(model):
    assert planned(model, "RTX A6000", rows(1000, 1024)).setup.max_length >= 1024


def test_the_demo_on_two_cores_is_a_short_lora_run():
    chosen = planned("smollm2-135m-instruct", CPU, rows(130, 90))
    setup, hyper = chosen.setup, chosen.hyperparameters
    assert setup.method is Method.LORA
    assert (setup.effective_batch_size, chosen.n_epochs, setup.packing) == (8, 3, False)
    assert 5e-4 <= hyper.learning_rate <= 2e-3
    assert 40 <= chosen.total_steps <= 80
    assert chosen.speed.seconds < 150
    assert not setup.gradient_checkpointing


def test_rows_are_packed_on_a_gpu_and_not_on_a_cpu():
    assert planned("smollm2-135m-instruct", "RTX 4090", rows(20_000, 100)).setup.packing
    assert not planned("smollm2-135m-instruct", CPU, rows(20_000, 100)).setup.packing
    assert not planned("smollm2-135m-instruct", "RTX 4090", rows(20_000, 100), packing=False).setup.packing


def test_rows_take_flash_attention_where_its_kernels_run():
    long, packed = rows(1000, 3000), rows(20_000, 100)
    t4 = replace(parse_gpu("24GiB"), compute_capability=(7, 5))
    attention = {
        name: planned(model, device, statistics, **requested).setup.attn_implementation
        for name, model, device, statistics, requested in [
            ("packed", "llama-3.2-1b-instruct", "RTX 4090", packed, {}),
            ("a row each", "llama-3.2-1b-instruct", "RTX 4090", long, {}),
            ("before Ampere", "llama-3.2-1b-instruct", t4, packed, {}),
            ("soft caps", "gemma-2-2b-it", "A100-80GB", packed, {}),
            ("packed on a CPU", "smollm2-135m-instruct", CPU, packed, {"packing": True}),
        ]
    }
    assert attention == {
        "packed": "varlen_flash",
        "a row each": "varlen_flash",
        "before Ampere": "sdpa",
        "soft caps": "eager",
        "packed on a CPU": "sdpa",
    }
    model = SPECS["llama-3.2-1b-instruct"]
    for changes in ({"model_type": "strange"}, {"head_dim": 320}, {"head_dim": 84}):
        other = replace(model, **changes)
        chosen = plan(Question(other, packed, [parse_gpu("A100-80GB")], RequestedConfig(), PRICES))
        assert (chosen.setup.packing, chosen.setup.attn_implementation) == (True, "sdpa")


def test_norms_are_fused_on_a_gpu_where_the_familys_code_is_what_the_kernel_computes():
    fused = {
        (model, device): planned(model, device, SMALL).setup.fused_norms
        for model in ("llama-3.2-1b-instruct", "qwen3-0.6b", "gemma-2b-it")
        for device in ("RTX 4090", CPU)
    }
    assert [key for key, is_fused in fused.items() if is_fused] == [
        ("llama-3.2-1b-instruct", "RTX 4090"), ("qwen3-0.6b", "RTX 4090"),
    ]  # fmt: skip
    setup = planned("llama-3.1-8b", "H200", rows(20_000, 100), method=Method.LORA).setup
    plain = replace(setup, fused_norms=False)
    ours, eager = (estimate_memory(SPECS["llama-3.1-8b"], x).peak_allocated_bytes for x in (setup, plain))
    assert ours < eager


def test_a_plan_takes_ligers_kernels_where_the_worker_has_them_and_says_so():
    device = replace(parse_gpu("H100-80GB"), has_liger=True)
    requested = RequestedConfig(method=Method.LORA)
    question = Question(SPECS["llama-3.1-8b"], rows(20_000, 100), [device], requested, {"default": 1})
    found = {has: plan(replace(question, devices=[replace(device, has_liger=has)])) for has in (True, False)}
    assert (found[True].setup.fused_rotary, found[True].setup.fused_activation) == (True, True)
    assert (found[False].setup.fused_rotary, found[False].setup.fused_activation) == (False, False)
    says = ["Liger's kernels compute the rotary" in " ".join(sentences(found[has].reasons)) for has in found]
    assert says == [True, False]
    ours, plain = (
        estimate_memory(SPECS["llama-3.1-8b"], replace(found[True].setup, fused_activation=fused))
        for fused in (True, False)
    )
    assert ours.peak_allocated_bytes < plain.peak_allocated_bytes
    compiled = plan(
        Question(
            SPECS["llama-3.1-8b"], rows(20_000, 100), [device], replace(requested, torch_compile=True), {"default": 1}
        )
    )
    assert (compiled.setup.fused_rotary, compiled.setup.fused_activation) == (False, False)


def test_a_card_without_bfloat16_computes_in_float16_and_trains_adapters():
    chosen = planned("qwen2.5-0.5b-instruct", "T4", rows(20_000, 100), priority=Priority.QUALITY)
    assert (chosen.setup.method, chosen.setup.dtype, chosen.setup.adapter_dtype) == (Method.LORA, "float16", "float32")
    assert chosen.setup.attn_implementation == "sdpa"
    assert any("float16" in reason and "NVIDIA T4 16GB" in reason for reason in sentences(chosen.reasons))
    assert {other.method for other in chosen.alternatives} == {Method.LORA, Method.QLORA}
    bfloat16 = replace(chosen.setup, dtype="bfloat16")
    spec = SPECS["qwen2.5-0.5b-instruct"]
    half, usual = (estimate_memory(spec, setup, chosen.device) for setup in (chosen.setup, bfloat16))
    assert half == usual, "both take 16 bits"
    assert planned("qwen2.5-0.5b-instruct", "RTX 3060", SMALL).setup.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("model", "requested", "said"),
    [
        ("qwen2.5-0.5b-instruct", {"method": Method.FULL}, "compute capability 7.5.*Use lora or qlora"),
        ("gemma-2b-it", {}, "gemma models have activations beyond float16's 65,504"),
    ],
)
def test_what_float16_cannot_do_is_refused_with_the_card_and_what_would_do(model, requested, said):
    with pytest.raises(InvalidSetupError, match=said):
        planned(model, "T4", SMALL, **requested)
    both = [parse_gpu("T4"), parse_gpu("RTX 3090")]
    assert (
        plan(Question(SPECS[model], SMALL, both, RequestedConfig(**requested), PRICES)).device.name
        == "NVIDIA RTX 3090 24GB"
    )


def test_a_card_that_torch_has_no_kernels_for_is_refused():
    volta = replace(parse_gpu("16GiB"), name="Tesla V100-SXM2-16GB", compute_capability=(7, 0))
    with pytest.raises(InvalidSetupError, match=r"Tesla V100-SXM2-16GB cannot train: it has compute capability 7.0"):
        plan(Question(SPECS["smollm2-135m-instruct"], SMALL, [volta], RequestedConfig(), PRICES))
    for name in ("V100", "v100-32gb", "Tesla P100", "GTX 1080 Ti"):
        with pytest.raises(InvalidSetupError, match="no kernels"):
            parse_gpu(name)


def test_rows_end_to_end_have_no_padding_to_pay_for():
    setup = planned("llama-3.2-1b-instruct", "RTX 4090", rows(1000, 3000), per_device_train_batch_size=4).setup
    assert (setup.packing, setup.attn_implementation) == (False, "varlen_flash")
    arguments = parse_gpu("RTX 4090"), rows(1000, 3000), Hyperparameters(n_epochs=1, learning_rate=1e-4)
    flat, padded = (
        estimate_speed(SPECS["llama-3.2-1b-instruct"], each, *arguments)
        for each in (setup, replace(setup, attn_implementation="sdpa"))
    )
    assert flat.tokens_per_second > 1.05 * padded.tokens_per_second


def test_flash_attention_over_packed_rows_needs_less_than_a_mask():
    setup = planned("llama-3.1-8b", "H200", rows(20_000, 100), method=Method.LORA).setup
    assert setup.attn_implementation == "varlen_flash"
    masked = replace(setup, attn_implementation="sdpa")
    flash, mask = (estimate_memory(SPECS["llama-3.1-8b"], x).peak_allocated_bytes for x in (setup, masked))
    assert flash < mask


def test_the_quote_covers_the_answers_that_are_asked_for():
    def predicted(**answering):
        spec = SPECS["smollm2-135m-instruct"]
        return plan(Question(spec, SMALL, [CPU], RequestedConfig(method=Method.LORA), PRICES, **answering))

    samples, compared = predicted(), predicted(answering=Answering(40, 512))
    more = compared.speed.sampling_seconds - samples.speed.sampling_seconds
    assert more > 60
    assert compared.quote.predicted_seconds == pytest.approx(samples.quote.predicted_seconds + more)
    assert compared.credits > samples.credits


def test_quality_ignores_the_size_of_the_data_set():
    assert planned("llama-3.1-8b", "H200", SMALL, priority=Priority.QUALITY).setup.method is Method.FULL


def test_economy_takes_the_cheapest_quote_that_fits():
    chosen = planned("llama-3.1-8b", "A100-80GB", SMALL, priority=Priority.ECONOMY)
    assert chosen.credits == min(other.credits for other in chosen.alternatives if other.fits)


def test_a_pinned_method_is_kept_and_the_priority_says_that_it_does_not_matter():
    chosen = planned("llama-3.1-8b", "H200", SMALL, method=Method.QLORA, priority=Priority.QUALITY)
    assert chosen.setup.method is Method.QLORA
    assert chosen.setup.quantization is Quantization.NF4_DOUBLE_QUANT
    assert any("as you asked" in reason and "quality" in reason for reason in sentences(chosen.reasons))


def test_every_pinned_number_is_kept():
    requested = {
        "method": Method.LORA, "lora_rank": 24, "lora_alpha": 5, "lora_dropout": 0.1,
        "lora_target_modules": ("q_proj", "v_proj"), "max_length": 300, "batch_size": 12,
        "per_device_train_batch_size": 3, "gradient_checkpointing": True, "n_epochs": 7, "learning_rate": 3e-5,
        "warmup_ratio": 0.2, "weight_decay": 0.05, "packing": True,
    }  # fmt: skip
    chosen = planned("llama-3.1-8b", "A100-80GB", SMALL, **requested)
    setup, hyper = chosen.setup, chosen.hyperparameters
    assert (setup.lora_rank, setup.lora_alpha, setup.lora_dropout) == (24, 5, 0.1)
    assert setup.lora_target_modules == ("q_proj", "v_proj")
    assert (setup.max_length, setup.effective_batch_size, setup.per_device_train_batch_size) == (300, 12, 3)
    assert (setup.gradient_checkpointing, setup.packing) == (True, True)
    assert (hyper.n_epochs, hyper.learning_rate) == (7, 3e-5)
    assert (hyper.warmup_ratio, hyper.weight_decay) == (0.2, 0.05)


def test_a_learning_rate_multiplier_scales_the_planners_own():
    own = planned("llama-3.1-8b", "A100-80GB").hyperparameters.learning_rate
    assert planned("llama-3.1-8b", "A100-80GB", learning_rate_multiplier=2.0).hyperparameters.learning_rate == (
        pytest.approx(2 * own, rel=0.03)
    )


def test_learning_rates_fall_with_width_and_are_lower_for_full_fine_tuning():
    small = planned("smollm2-135m-instruct", "A100-80GB").hyperparameters.learning_rate
    large = planned("llama-2-70b-hf", "A100-80GB").hyperparameters.learning_rate
    full = planned("smollm2-135m-instruct", "A100-80GB", method=Method.FULL).hyperparameters.learning_rate
    assert 1e-4 < large < small < 2e-3
    assert full == pytest.approx(small / 10, rel=0.05)


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"method": Method.FULL, "lora_rank": 8}, "trains no adapter"),
        ({"batch_size": 10, "per_device_train_batch_size": 4}, "not a multiple"),
        ({"learning_rate": 1e-4, "learning_rate_multiplier": 2.0}, "both set"),
        ({"validation_split": -0.1}, "at least 0"),
        ({"validation_split": 1.5}, "whole number"),
        ({"validation_split": 1000}, "leave none to train"),
        ({"validation_split": 0, "early_stopping_patience": 2}, "nothing is evaluated"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"n_epochs": 0}, "at least 1"),
        ({"lora_dropout": 1.0}, "at most 0.9"),
        ({"max_length": 1_000_000}, "at most 131072"),
        ({"lora_target_modules": ("nonsense",)}, "nonsense"),
        ({"early_stopping_patience": 0}, "at least 1"),
    ],
)
def test_contradictory_requests_are_refused(requested, message):
    with pytest.raises(InvalidSetupError, match=message):
        planned("llama-3.1-8b", "A100-80GB", **requested)


def test_stopping_early_needs_rows_to_evaluate_on():
    with pytest.raises(InvalidSetupError, match="of 19 rows none is held out"):
        planned("llama-3.1-8b", "A100-80GB", rows(19, 100), early_stopping_patience=2)
    for enough in (rows(20, 100), rows(19, 100).with_validation(rows(1, 100))):
        stopping = planned("llama-3.1-8b", "A100-80GB", enough, early_stopping_patience=2)
        assert stopping.hyperparameters.early_stopping_patience == 2
        assert any(
            "Training ends early when 2 evaluations in a row" in reason for reason in sentences(stopping.reasons)
        )


def test_compiled_layers_are_for_gpus_and_estimated_as_if_they_were_not():
    plain, compiled = (planned("llama-3.1-8b", "A100-80GB", torch_compile=option) for option in (None, True))
    assert compiled.setup == replace(plain.setup, torch_compile=True)
    assert (compiled.memory, compiled.speed, compiled.quote) == (plain.memory, plain.speed, plain.quote)
    assert [reason for reason in sentences(compiled.reasons) if reason not in sentences(plain.reasons)] == [
        reason for reason in sentences(compiled.reasons) if "torch.compile, as you asked" in reason
    ]
    spec, requested = SPECS["smollm2-135m-instruct"], RequestedConfig(torch_compile=True)
    with pytest.raises(InvalidSetupError, match="torch_compile is for GPUs"):
        plan(Question(spec, SMALL, [CPU], requested, PRICES))
    both = [replace(CPU, free_bytes=1 << 45), parse_gpu("T4")]
    assert plan(Question(spec, SMALL, both, requested, PRICES)).device.kind == "cuda"
    assert {outlook.device.kind for outlook in compare_methods(Question(spec, SMALL, both, requested, PRICES))} == {
        "cuda"
    }


def test_dropout_on_fused_experts_is_refused():
    with pytest.raises(InvalidSetupError, match="fused experts"):
        planned("mixtral-8x7b-instruct-v0.1", "A100-80GB", lora_dropout=0.1)
    attention = planned(
        "mixtral-8x7b-instruct-v0.1", "A100-80GB", lora_dropout=0.1, lora_target_modules=("q_proj", "v_proj")
    )
    assert attention.setup.lora_dropout == 0.1


def test_options_of_adapters_rule_full_fine_tuning_out():
    assert planned("llama-3.1-8b", "H200", LARGE, lora_rank=16).setup.method is Method.LORA


def test_what_does_not_fit_names_the_smallest_change_and_gpu():
    with pytest.raises(DoesNotFitError, match=r"QLoRA at .* needs .* GiB .* has 23\.6 GiB free.*48 GB"):
        planned("llama-3.3-70b-instruct", "RTX 4090")
    with pytest.raises(DoesNotFitError, match="use LoRA"):
        planned("llama-3.1-8b", "RTX 4090", method=Method.FULL)
    with pytest.raises(DoesNotFitError, match=r"set max_length to [\d,]+ or less"):
        planned("llama-3.1-8b", "RTX 3080", rows(100, 30_000))
    with pytest.raises(DoesNotFitError, match="leave per_device_train_batch_size open"):
        planned("llama-3.1-8b", "RTX 4090", per_device_train_batch_size=64, max_length=8192)


def test_the_length_that_a_refusal_names_does_fit():
    with pytest.raises(DoesNotFitError) as refused:
        planned("llama-3.1-8b", "RTX 3080", rows(100, 30_000))
    length = int(str(refused.value).split("set max_length to ")[1].split(" or less")[0].replace(",", ""))
    assert planned("llama-3.1-8b", "RTX 3080", rows(100, 30_000), max_length=length).setup.max_length == length


def test_free_memory_counts_and_not_the_total():
    gpu = replace(parse_gpu("A100-80GB"), free_bytes=12 << 30)
    chosen = planned("llama-3.1-8b", gpu)
    assert chosen.setup.method is Method.QLORA
    assert chosen.memory.required_bytes <= 12 << 30


def test_truncation_is_counted_and_said():
    chosen = planned("llama-2-7b-hf", "A100-80GB", rows(1000, 8000))
    assert chosen.setup.max_length == 4096
    assert chosen.truncated_examples > 0 < chosen.truncated_tokens
    assert f"{chosen.truncated_tokens:,}" in sentences(chosen.reasons)[0]


def test_the_cheaper_of_two_devices_that_fit_is_taken():
    cheap, dear = parse_gpu("RTX 4090"), replace(parse_gpu("H200"), index=1)
    prices = {"nvidia-rtx-4090-24gb": 500, "nvidia-h200-141gb": 90_000}
    assert plan(Question(SPECS["llama-3.1-8b"], SMALL, [dear, cheap], RequestedConfig(), prices)).device == cheap


def test_less_compression_outweighs_price():
    small, large = parse_gpu("RTX 3080"), replace(parse_gpu("A100-80GB"), index=1)
    chosen = plan(Question(SPECS["llama-3.1-8b"], SMALL, [small, large], RequestedConfig(), {"default": 1000}))
    assert (chosen.setup.method, chosen.device) == (Method.LORA, large)


def test_the_quote_follows_from_rate_time_and_margin():
    quote = planned("llama-3.1-8b", "A100-80GB").quote
    assert quote.billed_seconds == pytest.approx(quote.predicted_seconds + quote.margin_seconds)
    assert quote.credits == quote.predicted_credits + quote.margin_credits
    assert 0 <= quote.credits - quote.credits_per_hour * quote.billed_seconds / 3600 < 1


def test_no_price_and_no_device_are_refused():
    with pytest.raises(InvalidSetupError, match="price list"):
        plan(Question(SPECS["llama-3.1-8b"], SMALL, [CPU], RequestedConfig(), {}))
    with pytest.raises(InvalidSetupError, match="no device"):
        plan(Question(SPECS["llama-3.1-8b"], SMALL, [], RequestedConfig(), PRICES))


def test_alternatives_cover_every_method_with_and_without_checkpointing_and_say_why_not():
    chosen = planned("llama-3.1-8b", "RTX 4090")
    seen = {(other.method, other.gradient_checkpointing) for other in chosen.alternatives}
    assert seen == {(method, checkpointed) for method in LADDER for checkpointed in (False, True)}
    assert [sentence(other.reason) for other in chosen.alternatives if other.chosen] == ["the plan"]
    for other in chosen.alternatives:
        assert other.fits == (other.headroom_bytes >= 0)
        assert sentence(other.reason)
        assert other.credits > 0 < other.seconds


def test_a_correction_moves_what_fits():
    gpu = parse_gpu("RTX 4090")
    arguments = (SPECS["llama-3.1-8b"], SMALL, [gpu], RequestedConfig(), PRICES)
    assert plan(Question(*arguments)).setup.method is Method.LORA
    learned = {(gpu.device_class, Method.LORA): Correction(1.4, 0.02, 300)}
    assert plan(Question(*arguments, corrections=learned)).setup.method is Method.QLORA
    elsewhere = {("nvidia-h200-141gb", Method.LORA): Correction(1.4, 0.02, 300)}
    assert plan(Question(*arguments, corrections=elsewhere)) == plan(Question(*arguments))


def test_a_correction_is_said_and_kept_in_the_plan():
    gpu = parse_gpu("RTX 4090")
    learned = {(gpu.device_class, Method.LORA): Correction(0.9, 0.02, 300)}
    chosen = plan(Question(SPECS["llama-3.1-8b"], SMALL, [gpu], RequestedConfig(), PRICES, corrections=learned))
    plain = estimate_memory(SPECS["llama-3.1-8b"], chosen.setup, gpu)
    assert chosen.memory.uncorrected_bytes == pytest.approx(plain.device_bytes, abs=1)
    assert chosen.memory.bound_bytes == pytest.approx(0.02 * chosen.memory.device_bytes, abs=1)
    assert any(
        "300 finished runs like it here moved the prediction by -10.0%" in reason
        for reason in sentences(chosen.reasons)
    )


def test_stepping_down_keeps_the_effective_batch_until_one_row_is_left():
    setup = TrainingSetup(Method.FULL, per_device_train_batch_size=12, gradient_accumulation_steps=2)
    sizes = []
    while setup is not None:
        sizes.append(setup.per_device_train_batch_size)
        assert setup.effective_batch_size == 24
        setup = step_down(setup)
    assert sizes == [12, 6, 3, 1]


specs = st.sampled_from(sorted(SPECS)).map(SPECS.__getitem__)
statistics = st.builds(rows, st.integers(2, 300_000), st.integers(8, 6000), st.floats(0.05, 1.0))
memory = st.integers(2, 200).map(lambda gib: gib << 30)
requested = st.builds(
    RequestedConfig,
    priority=st.sampled_from([Priority.AUTO, Priority.QUALITY]),
    gradient_checkpointing=st.sampled_from([None, None, True, False]),
    batch_size=st.sampled_from([None, None, 6, 16]),
    packing=st.sampled_from([None, None, False]),
)


def gpu_with(free_bytes):
    return replace(parse_gpu("A100-80GB"), total_bytes=free_bytes, free_bytes=free_bytes)


def attempt(spec, data, free_bytes, wanted):
    try:
        return plan(Question(spec, data, [gpu_with(free_bytes)], wanted, PRICES))
    except DoesNotFitError:
        return None


@settings(max_examples=60, deadline=None)
@given(specs, statistics, memory, requested)
def test_a_plan_fits_is_pure_and_adds_up(spec, data, free_bytes, wanted):
    chosen = attempt(spec, data, free_bytes, wanted)
    if chosen is None:
        return
    assert chosen.memory.required_bytes <= free_bytes
    assert estimate_memory(spec, chosen.setup, chosen.device) == chosen.memory
    assert chosen == attempt(spec, data, free_bytes, wanted)
    assert sum(other.chosen for other in chosen.alternatives) == 1
    trained = data.examples - chosen.hyperparameters.held_out_rows
    if wanted.batch_size and not chosen.setup.packing:
        assert chosen.setup.effective_batch_size == min(wanted.batch_size, trained)
    assert chosen.setup.effective_batch_size <= trained
    assert chosen.setup.max_length <= spec.max_position_embeddings
    assert chosen.total_steps >= chosen.n_epochs


@settings(max_examples=60, deadline=None)
@given(specs, statistics, memory, memory, requested)
def test_more_memory_never_compresses_more(spec, data, one, other, wanted):
    less, more = sorted((one, other))
    poorer, richer = attempt(spec, data, less, wanted), attempt(spec, data, more, wanted)
    if poorer is None:
        return
    assert richer is not None
    assert LADDER.index(richer.setup.method) <= LADDER.index(poorer.setup.method)
    if richer.setup.method is poorer.setup.method:
        assert (richer.setup.lora_rank or 0) >= (poorer.setup.lora_rank or 0)
