"""The dry-run step is the real one, and the planner's estimate for our own trainer agrees with it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from core.errors import InvalidModelError, TrainingError
from planner.catalogue import find_model
from planner.memory.dry_run import EVALUATION, EVALUATION_LOSS
from planner.memory.estimate import estimate_memory
from planner.model.spec import ModelSpec
from planner.setup import VARLEN_FLASH, InitLoraWeights, Method, Quantization, TrainingSetup
from worker.training.dry_run.memory_tracker import Category, MemoryTracker
from worker.training.dry_run.step import dry_run

TOLERANCE = 0.03
EVALUATION_TOLERANCE = (-0.16, 0.55)  # of what it takes above static: it never decides; an adapted head takes less
SAMPLE = (2, 3)
MIB = 2**20
FULL, LORA, QLORA = Method.FULL, Method.LORA, Method.QLORA
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def setup_of(method: Method, rows: int, length: int, *, checkpointed: bool, **changes: Any) -> TrainingSetup:
    setup = TrainingSetup(
        method, per_device_train_batch_size=rows, max_length=length, gradient_checkpointing=checkpointed
    )
    if method is not FULL:
        setup = replace(
            setup, lora_rank=16, lora_alpha=32, lora_target_modules=("all-linear",), adapter_dtype="float32"
        )
    if method is QLORA:
        setup = replace(setup, quantization=Quantization.NF4_DOUBLE_QUANT)
    return replace(setup, **changes)


EAGER = {"attn_implementation": "eager"}
VARLEN = {"packing": True, "attn_implementation": VARLEN_FLASH}
FUSED = {"fused_norms": True}
LIGER = FUSED | {"fused_rotary": True, "fused_activation": True}
UNPACKED = {"attn_implementation": VARLEN_FLASH}
PISSA, OLORA = InitLoraWeights.PISSA, InitLoraWeights.OLORA
BOTH = ("embed_tokens", "lm_head")
ATTENTION_ONLY = {"lora_target_modules": ("q_proj", "v_proj")}
# model, method, rows, length, checkpointing, other choices
COMBINATIONS: list[tuple[str, Method, int, int, bool, dict[str, Any]]] = [
    ("smollm2-135m-instruct", LORA, 8, 512, False, {}),
    ("smollm2-135m-instruct", FULL, 8, 512, True, {}),
    ("smollm2-135m-instruct", LORA, 1, 64, True, {}),
    ("qwen2.5-0.5b-instruct", LORA, 8, 512, False, {}),
    ("qwen3-0.6b", QLORA, 4, 512, False, {}),
    ("llama-3.2-1b-instruct", FULL, 4, 1024, True, {"gradient_accumulation_steps": 2}),
    ("llama-3.2-1b-instruct", FULL, 1, 1024, True, {"optimizer": "adamw_bnb_8bit"}),
    ("smollm3-3b", FULL, 1, 1024, True, {}),
    ("smollm3-3b", LORA, 2, 1024, False, {}),
    ("gemma-2b-it", FULL, 1, 1024, True, {"gradient_accumulation_steps": 4}),
    ("gemma-2b-it", LORA, 2, 1024, False, {}),
    ("gemma-2-2b-it", LORA, 1, 1024, False, EAGER),
    ("gemma-2-2b-it", QLORA, 4, 256, True, EAGER),
    ("gemma-2-9b-it", LORA, 2, 1024, True, EAGER),
    ("phi-3-mini-4k-instruct", LORA, 1, 2048, False, {}),
    ("phi-4", LORA, 2, 1024, False, {}),
    ("phi-4", QLORA, 1, 1024, True, {}),
    ("granite-3.1-8b-instruct", LORA, 2, 1024, True, {}),
    ("granite-3.1-8b-instruct", QLORA, 1, 1024, False, {}),
    ("olmo-2-1124-7b-instruct", LORA, 2, 1024, False, {}),
    ("olmo-2-1124-7b-instruct", FULL, 1, 1024, True, {}),
    ("mistral-7b-v0.1", LORA, 2, 1024, True, {}),
    ("mistral-7b-v0.1", QLORA, 1, 8192, True, {}),  # beyond its sliding window
    ("mistral-7b-v0.1", LORA, 1, 4096, False, {}),
    ("qwen2.5-7b-instruct", LORA, 2, 1024, False, {}),
    ("qwen2.5-7b-instruct", QLORA, 1, 1024, True, {}),
    ("qwen3-8b", LORA, 2, 1024, False, {}),
    ("qwen3-8b", LORA, 1, 16384, True, {}),
    ("qwen3-8b", FULL, 1, 1024, True, {}),
    ("llama-3.1-8b", FULL, 1, 2048, True, {}),
    ("llama-3.1-8b", FULL, 1, 2048, True, {"optimizer": "adamw_torch", "gradient_accumulation_steps": 4}),
    ("llama-3.1-8b", FULL, 1, 2048, True, {"optimizer": "paged_adamw_8bit"}),
    ("llama-3.1-8b", FULL, 1, 2048, False, {}),
    ("llama-3.1-8b", LORA, 1, 2048, False, {}),
    ("llama-3.1-8b", LORA, 4, 4096, True, {"lora_rank": 64, "gradient_accumulation_steps": 4}),
    ("llama-3.1-8b", LORA, 2, 1024, False, ATTENTION_ONLY),
    ("llama-3.1-8b", LORA, 2, 1024, False, {"adapter_dtype": "bfloat16"}),
    ("llama-3.1-8b", LORA, 2, 1024, False, {"lora_dropout": 0.1}),
    ("llama-3.1-8b", LORA, 2, 1024, False, EAGER),
    ("llama-3.1-8b", LORA, 2, 2048, True, {"packing": True}),
    ("llama-3.1-8b", LORA, 2, 2048, True, VARLEN),
    ("llama-3.1-8b", LORA, 2, 2048, False, VARLEN),
    ("smollm2-135m-instruct", LORA, 8, 2048, False, VARLEN),
    ("phi-4", QLORA, 2, 2048, True, VARLEN),  # its rotary embedding lays heads before tokens
    ("gemma-2b-it", LORA, 2, 2048, False, VARLEN),  # one key head of 256
    ("mistral-7b-v0.1", QLORA, 1, 8192, False, VARLEN),  # beyond its sliding window
    ("qwen3-8b", FULL, 1, 2048, True, VARLEN),
    ("llama-3.1-8b", LORA, 4, 512, False, UNPACKED | FUSED),
    ("llama-3.1-8b", LORA, 2, 4096, False, VARLEN | FUSED),
    ("llama-3.1-8b", LORA, 4, 4096, True, VARLEN | FUSED),
    ("qwen3-8b", FULL, 1, 2048, True, VARLEN | FUSED),  # norms of heads too
    ("qwen3-0.6b", QLORA, 4, 512, False, UNPACKED | FUSED),
    ("olmoe-1b-7b-0924-instruct", QLORA, 2, 1024, True, FUSED),
    ("llama-3.1-8b", LORA, 2, 4096, False, VARLEN | LIGER),
    ("llama-3.1-8b", LORA, 4, 4096, True, VARLEN | LIGER),
    ("llama-3.1-8b", QLORA, 2, 1024, False, LIGER | {"lora_dropout": 0.1}),
    ("qwen3-0.6b", QLORA, 4, 512, False, UNPACKED | LIGER),
    ("gemma-2b-it", LORA, 2, 2048, False, VARLEN | LIGER),
    ("phi-4", LORA, 2, 1024, False, FUSED | {"fused_activation": True}),  # gate and up in one tensor
    ("olmo-2-1124-7b-instruct", LORA, 2, 1024, False, FUSED | {"fused_activation": True}),
    ("mixtral-8x7b-instruct-v0.1", QLORA, 1, 1024, True, VARLEN | FUSED | {"fused_rotary": True}),
    ("qwen2.5-0.5b-instruct", LORA, 8, 1024, True, UNPACKED),
    ("mistral-7b-v0.1", QLORA, 1, 8192, True, UNPACKED),  # beyond its sliding window
    ("llama-3.1-8b", LORA, 1, 1024, True, {"lora_target_modules": ("all-linear", "lm_head")}),
    ("llama-3.1-8b", LORA, 1, 1024, True, {"lora_target_modules": ("q_proj", "embed_tokens")}),
    ("llama-3.1-8b", QLORA, 1, 2048, True, {}),
    ("llama-3.1-8b", QLORA, 2, 1024, False, {"lora_dropout": 0.1}),
    ("llama-3.3-70b-instruct", LORA, 2, 1024, True, {}),
    ("llama-3.3-70b-instruct", QLORA, 1, 2048, True, {}),
    ("llama-3.3-70b-instruct", FULL, 1, 1024, True, {}),
    ("mixtral-8x7b-instruct-v0.1", QLORA, 1, 1024, True, {}),
    ("mixtral-8x7b-instruct-v0.1", LORA, 2, 1024, False, ATTENTION_ONLY),
    ("mixtral-8x7b-instruct-v0.1", QLORA, 1, 1024, True, {"lora_target_modules": ("experts.down_proj", "q_proj")}),
    ("olmoe-1b-7b-0924-instruct", QLORA, 2, 1024, True, {}),
    ("qwen3-30b-a3b", LORA, 2, 1024, True, {}),
    ("llama-3.1-8b", FULL, 1, 2048, True, {"optimizer": "paged_adamw_32bit"}),
    ("llama-3.1-8b", LORA, 1, 2048, False, {"use_dora": True}),
    ("llama-3.1-8b", LORA, 2, 1024, False, {"use_dora": True, "lora_dropout": 0.1}),
    ("llama-3.1-8b", QLORA, 1, 2048, True, {"use_dora": True}),
    ("qwen3-0.6b", QLORA, 4, 512, False, {"use_dora": True, "use_rslora": True}),
    ("llama-3.1-8b", LORA, 1, 2048, False, {"init_lora_weights": OLORA}),
    ("llama-3.1-8b", LORA, 1, 2048, True, {"init_lora_weights": PISSA, "lora_rank": 64}),
    ("llama-3.1-8b", QLORA, 1, 2048, True, {"init_lora_weights": PISSA, "use_dora": True}),
    ("llama-3.1-8b", LORA, 1, 2048, True, {"modules_to_save": ("embed_tokens",)}),
    ("llama-3.1-8b", LORA, 1, 2048, True, {"modules_to_save": ("lm_head",)}),
    ("llama-3.1-8b", QLORA, 1, 2048, True, {"modules_to_save": BOTH, "optimizer": "paged_adamw_8bit"}),
    ("llama-3.1-8b", LORA, 2, 1024, False, {"modules_to_save": BOTH, "gradient_accumulation_steps": 4}),
    ("llama-3.1-8b", LORA, 1, 1024, True, {"modules_to_save": ("lm_head",), "optimizer": "adamw_torch"}),
    ("llama-3.1-8b", LORA, 1, 1024, True, {"modules_to_save": BOTH, "adapter_dtype": "bfloat16"}),
    ("qwen2.5-0.5b-instruct", LORA, 4, 512, True, {"modules_to_save": ("lm_head",), "gradient_accumulation_steps": 2}),
    ("llama-3.2-1b-instruct", QLORA, 1, 1024, True, {"modules_to_save": ("embed_tokens",)}),
    ("gemma-2-2b-it", LORA, 1, 1024, True, {"modules_to_save": ("embed_tokens",), **EAGER}),
    ("mixtral-8x7b-instruct-v0.1", QLORA, 1, 1024, True, {"modules_to_save": BOTH}),
]


def config_of(model: str) -> dict[str, Any]:
    entry = find_model(model)
    assert entry is not None
    return dict(entry.config)


@pytest.mark.parametrize(("model", "method", "rows", "length", "checkpointed", "changes"), COMBINATIONS)
def test_the_estimate_agrees_with_the_dry_run_step(
    model: str, method: Method, rows: int, length: int, checkpointed: bool, changes: dict[str, Any]
) -> None:
    setup = setup_of(method, rows, length, checkpointed=checkpointed, **changes)
    config = config_of(model)
    done = dry_run(config, setup, sample=SAMPLE)
    estimate = estimate_memory(ModelSpec.from_config(config), setup)
    workspaces = estimate.library_workspaces_bytes  # cuBLAS is not dry-run
    assert estimate.static_allocated_bytes - workspaces == pytest.approx(done.static_bytes, rel=0.005)
    assert estimate.peak_allocated_bytes - workspaces == pytest.approx(done.peak_bytes, rel=TOLERANCE)
    phases = [moment for moment in done.moments if moment.phase in (EVALUATION, EVALUATION_LOSS)]
    evaluation = max(phases, key=lambda moment: moment.total_bytes)
    error = estimate.evaluation_phase_bytes / (evaluation.total_bytes - done.static_bytes) - 1
    assert EVALUATION_TOLERANCE[0] <= error <= EVALUATION_TOLERANCE[1]
    assert evaluation.total_bytes < done.peak_bytes


def test_enough_combinations_agree() -> None:
    assert len(COMBINATIONS) >= 40
    assert {method for _, method, *_ in COMBINATIONS} == set(Method)


def test_layers_with_and_without_a_window_are_both_counted() -> None:
    config = config_of("gemma-3-1b-it") | {"num_hidden_layers": 6, "sliding_window": 512}
    setup = setup_of(LORA, 1, 2048, checkpointed=False)
    spec = ModelSpec.from_config(config)
    assert {(group.count, group.windowed) for group in spec.groups} == {(5, True), (1, False)}
    estimate = estimate_memory(spec, setup)
    assert estimate.peak_allocated_bytes - estimate.library_workspaces_bytes == pytest.approx(
        dry_run(config, setup).peak_bytes, rel=TOLERANCE
    )


class _Layer(torch.nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + 1


def _failing_backend(*_: object) -> Any:
    raise RuntimeError("no such instruction")


def test_a_step_holds_no_more_after_the_compiler_failed() -> None:
    """torch goes on evaluating Python's frames then: a caller keeps what it passes on until the call returns."""
    config = config_of("gemma-3-1b-it") | {"num_hidden_layers": 2}
    setup = setup_of(LORA, 1, 1024, checkpointed=False)
    plain = dry_run(config, setup)
    layer = _Layer()
    layer.compile(backend=_failing_backend)
    with pytest.raises(BackendCompilerFailed):
        layer(torch.ones(1))
    try:
        assert dry_run(config, setup).peak == plain.peak
    finally:
        torch.compiler.reset()


def test_two_numbers_of_layers_give_the_whole_model() -> None:
    config = config_of("llama-3.2-1b-instruct") | {"num_hidden_layers": 8}
    setup = setup_of(LORA, 1, 512, checkpointed=True)
    whole, sampled = dry_run(config, setup), dry_run(config, setup, sample=SAMPLE)
    assert (whole.sampled_layers, sampled.sampled_layers, sampled.layers) == ((8,), SAMPLE, 8)
    assert sampled.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.001)
    assert sampled.static_bytes == pytest.approx(whole.static_bytes, rel=0.001)


def test_a_dry_run_says_what_is_alive_at_the_peak_and_which_operator_runs() -> None:
    config = config_of("llama-3.1-8b") | {"num_hidden_layers": 2}
    done = dry_run(config, setup_of(FULL, 1, 512, checkpointed=True, optimizer="adamw_torch"))
    assert (done.peak.phase, done.peak.operator) == ("optimizer step", "aten._foreach_sqrt.default")
    parameters = ModelSpec.from_config(config).parameters
    held = done.peak.bytes_by_category
    assert held[Category.BASE] == pytest.approx(2 * parameters, rel=0.001)
    assert held[Category.GRADIENTS] == pytest.approx(2 * parameters, rel=0.001)
    assert held[Category.OPTIMIZER] == pytest.approx(4 * parameters, rel=0.001)
    assert held[Category.ACTIVATIONS] == pytest.approx(2 * parameters, rel=0.01)  # the temporary of the foreach step


def test_real_tensors_take_what_fake_ones_said() -> None:
    """The ledger against torch's own count of the same operators, run for real."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def step() -> torch.Tensor:
        weight = torch.ones(256, 256, requires_grad=True)
        hidden = (torch.ones(64, 256) @ weight).relu() @ weight
        hidden.pow(2).sum().backward()
        assert weight.grad is not None
        return weight.grad

    peaks = []
    for fake in (True, False):
        with FakeTensorMode() if fake else torch.enable_grad(), MemoryTracker() as memory:
            memory.enter("step")
            kept = step()
            assert sum(memory.bytes_now().values()) == kept.untyped_storage().nbytes()
        peaks.append(memory.moments["step"].total_bytes)
    assert peaks[0] == peaks[1] > 3 * 256 * 256 * 4


def test_the_cpu_is_dry_run_with_its_own_attention() -> None:
    config = config_of("smollm2-135m-instruct") | {"num_hidden_layers": 3}
    setup = setup_of(LORA, 4, 256, checkpointed=False)
    on_cpu, on_cuda = (dry_run(config, setup, kind) for kind in ("cpu", "cuda"))
    assert on_cpu.static_bytes == pytest.approx(on_cuda.static_bytes, rel=0.01)
    assert on_cpu.peak_bytes != on_cuda.peak_bytes


def test_what_cannot_be_dry_run_is_refused() -> None:
    setup = setup_of(LORA, 1, 64, checkpointed=False)
    with pytest.raises(InvalidModelError, match="no_such_model"):
        dry_run({"model_type": "no_such_model", "num_hidden_layers": 2}, setup)
    with pytest.raises(InvalidModelError, match="t5"):
        dry_run({"model_type": "t5"}, setup)
    with pytest.raises(TrainingError, match="sdpa, eager, varlen_flash"):
        dry_run(config_of("llama-3.1-8b"), replace(setup, attn_implementation="flash_attention_2"))


def test_dry_run_leaves_nothing_fake_behind() -> None:
    from bitsandbytes import functional

    dry_run(config_of("smollm2-135m-instruct") | {"num_hidden_layers": 2}, setup_of(QLORA, 1, 64, checkpointed=True))
    assert not functional.name2qmap["dynamic"].is_meta
    packed, state = functional.quantize_4bit(torch.ones(64, 64), compress_statistics=True, quant_type="nf4")
    assert functional.dequantize_4bit(packed, state).sum().item() == pytest.approx(64 * 64, rel=0.01)
