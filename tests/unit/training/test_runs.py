"""Whole runs in real children: each method trains, exports, proves its export; errors come out as reports."""

import csv
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from planner.setup import InitLoraWeights, Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import Finished, request_for, run_child, setup_for, setup_here
from worker.protocol import (
    CheckpointReport,
    ErrorReport,
    MemoryReport,
    MetricsReport,
    Phase,
    PhaseReport,
    ResultReport,
    RunRequest,
)

pytestmark = pytest.mark.usefixtures("fork_server")
HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,learning_rate"


def succeed(request: RunRequest) -> tuple[Finished, ResultReport, Path]:
    finished = run_child(request)
    assert finished.of(ErrorReport) == []
    assert finished.exit_code == 0
    (result,) = finished.of(ResultReport)
    return finished, result, Path(request.run_directory)


@pytest.mark.parametrize("method", list(Method))
def test_each_method_trains_exports_and_verifies(
    tiny_model: Path, conversations: Path, tmp_path: Path, method: Method
) -> None:
    setup = setup_for(method)  # in bfloat16, as GPUs do
    request = request_for(tiny_model, conversations, tmp_path, setup, learning_rate=5e-3)
    finished, result, root = succeed(request)
    phases = [report.phase for report in finished.of(PhaseReport)]
    assert phases[:4] == [Phase.LOADING, Phase.PROBING, Phase.EVALUATING, Phase.SAMPLING]
    assert phases[-2:] == [Phase.EXPORTING, Phase.VERIFYING]
    steps = [report for report in finished.of(MetricsReport) if report.train_loss is not None]
    assert [report.step for report in steps] == list(range(1, 11))  # 18 rows, 4 a step, 2 epochs
    assert steps[-1].processed_tokens == result.processed_tokens > 0
    assert result.final_valid_loss is not None
    assert result.initial_valid_loss is not None
    assert result.final_valid_loss < result.initial_valid_loss
    assert [report.when for report in finished.of(MemoryReport)] == ["probe", "end"]
    assert [report.step for report in finished.of(CheckpointReport)][-1] == 10

    archive = "model.zip" if method is Method.FULL else "adapter.zip"
    assert list(result.files) == [archive, "metrics.csv", "samples.json", "plan.json"]
    metrics = (root / result.files["metrics.csv"]).read_text()
    assert metrics.splitlines()[0] == HEADER
    rows = list(csv.DictReader(io.StringIO(metrics)))
    assert [row["step"] for row in rows] == [str(step) for step in range(11)]
    assert float(rows[-1]["valid_loss"]) == result.final_valid_loss
    assert [float(row["learning_rate"]) for row in rows[1:]] == [report.learning_rate for report in steps]
    assert all(report.learning_rate > 0 for report in steps)
    assert result.evaluation is not None
    elsewhere = result.evaluation.valid_loss_on_16bit_base
    assert result.evaluation.is_on_4bit_base == (elsewhere is not None) == (method is Method.QLORA)
    assert elsewhere is None or 0 < abs(elsewhere - result.final_valid_loss) < 0.2 * result.final_valid_loss
    samples = json.loads((root / result.files["samples.json"]).read_text())
    assert len(samples) == 2
    assert all(sample["before"] and sample["after"] and sample["reference"] for sample in samples)
    with zipfile.ZipFile(root / result.files[archive]) as packed:
        names = set(packed.namelist())
        card = packed.read("README.md").decode()
    assert ("| loss, on the 16-bit base | |" in card) == ("BitsAndBytesConfig" in card) == (method is Method.QLORA)
    weights = {"model.safetensors", "config.json"}
    if method is not Method.FULL:
        weights = {"adapter_model.safetensors", "adapter_config.json"}
    extras = {"tokenizer.json", "README.md", "plan.json", "metrics.csv", "samples.json"}
    assert weights | extras <= names


def test_an_adapter_loads_with_plain_peft_and_changes_the_answers(
    tiny_model: Path, conversations: Path, tmp_path: Path
) -> None:
    request = request_for(tiny_model, conversations, tmp_path, setup_here(Method.LORA), learning_rate=2e-2)
    _, result, root = succeed(request)
    with zipfile.ZipFile(root / result.files["adapter.zip"]) as packed:
        packed.extractall(tmp_path / "unpacked")
    config = json.loads((tmp_path / "unpacked" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-model"
    assert config["revision"] == "rev1"
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "unpacked")
    assert tokenizer.chat_template
    ids = torch.tensor([tokenizer.apply_chat_template([{"role": "user", "content": "glow?"}])["input_ids"]])
    with torch.inference_mode():
        before = base(ids).logits.float()
        after = PeftModel.from_pretrained(base, tmp_path / "unpacked")(ids).logits.float()
    assert (after - before).abs().max() > 0.1


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (Method.LORA, {}),
        (Method.QLORA, {"init_lora_weights": InitLoraWeights.PISSA}),
        (Method.LORA, {"use_dora": True, "modules_to_save": ("embed_tokens",)}),
        (Method.FULL, {}),
    ],
)
def test_a_checkpoint_loads_as_the_export_does(
    tiny_model: Path, conversations: Path, tmp_path: Path, method: Method, changes: dict[str, Any]
) -> None:
    setup = setup_here(method, **changes)
    hyperparameters = {"n_epochs": 1, "held_out_rows": 0}
    request = request_for(
        tiny_model, conversations, tmp_path, setup, learning_rate=2e-2, hyperparameters=hyperparameters
    )
    finished, result, root = succeed(request)
    checkpoint = Path(finished.of(CheckpointReport)[-1].path)
    export = tmp_path / "unpacked"
    with zipfile.ZipFile(root / result.files["model.zip" if method is Method.FULL else "adapter.zip"]) as packed:
        packed.extractall(export)
    ids = torch.tensor([[5, 6, 7, 8]])

    def logits(directory: Path) -> torch.Tensor:
        base = AutoModelForCausalLM.from_pretrained(directory if method is Method.FULL else tiny_model)
        model = base if method is Method.FULL else PeftModel.from_pretrained(base, directory)
        with torch.inference_mode():
            return model(ids).logits.float()

    assert torch.equal(logits(checkpoint), logits(export))
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template
    assert f"step {result.steps} of {result.steps}" in (checkpoint / "README.md").read_text()


def test_equal_requests_give_equal_bytes(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    setup = setup_here(Method.LORA, lora_dropout=0.1)
    archives = []
    for name in ("first", "second"):
        request = request_for(tiny_model, conversations, tmp_path / name, setup, hyperparameters={"n_epochs": 1})
        _, result, root = succeed(request)
        archives.append((root / result.files["adapter.zip"]).read_bytes())
    assert archives[0] == archives[1]


def test_a_smaller_micro_batch_trains_the_same(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    losses = []
    for micro, accumulation in ((4, 1), (1, 4)):
        setup = setup_here(
            Method.FULL,
            dtype="float32",
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
        )
        request = request_for(tiny_model, conversations, tmp_path / str(micro), setup)
        finished, _, _ = succeed(request)
        losses.append([r.train_loss for r in finished.of(MetricsReport) if r.train_loss is not None])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_packing_trains_every_row(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    setup = setup_here(Method.LORA, packing=True, gradient_checkpointing=True, per_device_train_batch_size=1)
    finished, result, _ = succeed(request_for(tiny_model, conversations, tmp_path / "packed", setup))
    plain = setup_here(Method.LORA)
    _, unpacked, _ = succeed(request_for(tiny_model, conversations, tmp_path / "plain", plain))
    assert result.processed_tokens == unpacked.processed_tokens
    assert finished.of(MetricsReport)[-1].total_steps < 18


@pytest.mark.parametrize(("family", "attention"), [("gemma2", "eager"), ("granite", "sdpa"), ("mixtral", "sdpa")])
def test_other_families_train_and_verify(tmp_path: Path, conversations: Path, family: str, attention: str) -> None:
    model = make_tiny_model(tmp_path / "model", family=family)
    setup = setup_here(Method.QLORA, attn_implementation=attention)
    succeed(request_for(model, conversations, tmp_path / "run", setup, hyperparameters={"n_epochs": 1}))


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_other_optimizers_train(tiny_model: Path, conversations: Path, tmp_path: Path, optimizer: str) -> None:
    setup = setup_here(Method.FULL, optimizer=optimizer)
    request = request_for(tiny_model, conversations, tmp_path, setup, hyperparameters={"n_epochs": 1})
    finished, _, _ = succeed(request)
    losses = [step.train_loss for step in finished.of(MetricsReport) if step.train_loss is not None]
    assert losses
    assert all(0 < loss < 10 for loss in losses)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (Method.LORA, {"use_dora": True, "lora_dropout": 0.1}),
        (Method.QLORA, {"use_dora": True}),
        (Method.LORA, {"init_lora_weights": InitLoraWeights.PISSA}),
        (Method.QLORA, {"init_lora_weights": InitLoraWeights.PISSA, "use_rslora": True}),
        (Method.LORA, {"init_lora_weights": InitLoraWeights.OLORA, "gradient_checkpointing": True}),
        (Method.LORA, {"modules_to_save": ("embed_tokens",), "gradient_checkpointing": True}),
        (Method.QLORA, {"modules_to_save": ("lm_head",), "use_dora": True}),
    ],
)
def test_each_variant_learns_and_its_export_is_proven(
    tiny_model: Path, conversations: Path, tmp_path: Path, method: Method, changes: dict[str, Any]
) -> None:
    request = request_for(tiny_model, conversations, tmp_path, setup_here(method, **changes), learning_rate=5e-3)
    finished, result, root = succeed(request)
    losses = [report.train_loss for report in finished.of(MetricsReport) if report.train_loss is not None]
    assert losses[-1] < 0.98 * losses[0]
    assert result.final_valid_loss is not None
    assert result.initial_valid_loss is not None
    assert result.final_valid_loss < result.initial_valid_loss
    with zipfile.ZipFile(root / result.files["adapter.zip"]) as packed:
        config = json.loads(packed.read("adapter_config.json"))
        card = packed.read("README.md").decode()
    is_started = "init_lora_weights" in changes
    assert (config["r"], config["init_lora_weights"]) == (8 if is_started else 4, True)
    assert config["use_dora"] == changes.get("use_dora", False)
    assert ("of rank 8" in card) == is_started


def fail(request: RunRequest) -> ErrorReport:
    finished = run_child(request)
    assert finished.exit_code == 1
    (error,) = finished.of(ErrorReport)
    return error


def test_running_out_of_memory_names_the_phase(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    request = request_for(tiny_model, conversations, tmp_path, setup_here(Method.LORA), memory_limit_bytes=50 * 2**20)
    error = fail(request)
    assert (error.code, error.phase) == ("out_of_memory", Phase.LOADING)
    assert "50 MiB" in error.message


def test_a_probe_that_does_not_fit_is_out_of_memory_there(tmp_path: Path, conversations: Path) -> None:
    model = make_tiny_model(tmp_path / "model", vocab_size=384)
    long_row = {"messages": [{"role": "user", "content": "glow"}, {"role": "assistant", "content": "lamp " * 1500}]}
    data = tmp_path / "long.jsonl"
    data.write_text((json.dumps(long_row) + "\n") * 16)
    setup = setup_here(Method.FULL, max_length=1024, per_device_train_batch_size=12, attn_implementation="sdpa")
    loaded = run_child(request_for(model, conversations, tmp_path / "small", setup_here(Method.FULL)))
    used = next(report.device_bytes for report in loaded.of(MemoryReport))
    error = fail(request_for(model, data, tmp_path / "run", setup, memory_limit_bytes=used + 20 * 2**20))
    assert (error.code, error.phase) == ("out_of_memory", Phase.PROBING)


@pytest.mark.parametrize(("held_out", "expected_skips"), [(0, 5), (6, 4)])
def test_a_diverging_run_ends_after_a_few_skipped_steps_or_at_an_evaluation(
    tiny_model: Path, conversations: Path, tmp_path: Path, held_out: int, expected_skips: int
) -> None:
    request = request_for(
        tiny_model,
        conversations,
        tmp_path,
        setup_here(Method.FULL),
        learning_rate=1e38,
        hyperparameters={"held_out_rows": held_out},
    )
    finished = run_child(request)
    (error,) = finished.of(ErrorReport)
    assert error.code == "loss_diverged"
    assert "1e+38" in error.message
    skipped = [
        report for report in finished.of(MetricsReport) if report.valid_loss is None and report.train_loss is None
    ]
    assert len(skipped) == expected_skips


def test_pickle_weights_are_refused(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    model = tmp_path / "pickle"
    model.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    torch.save({}, model / "pytorch_model.bin")
    error = fail(request_for(model, conversations, tmp_path / "run", setup_here(Method.LORA)))
    assert error.code == "invalid_model"
    assert "safetensors" in error.message


def test_damaged_weights_are_an_invalid_model(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    model = tmp_path / "damaged"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    error = fail(request_for(model, conversations, tmp_path / "run", setup_here(Method.LORA)))
    assert error.code == "invalid_model"


def test_a_target_that_no_layer_has_is_refused(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    setup = setup_here(Method.LORA, lora_target_modules=("q_proj", "no_such_proj"))
    error = fail(request_for(tiny_model, conversations, tmp_path, setup))
    assert error.code == "unsupported_setup"
    assert "no_such_proj" in error.message


def test_one_row_trains_without_evaluation(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "one.jsonl"
    row = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "glow glow"}]}
    data.write_text(json.dumps(row) + "\n")
    _, result, _ = succeed(request_for(tiny_model, data, tmp_path / "run", setup_here(Method.LORA)))
    assert result.steps == 2
    assert result.initial_valid_loss is None


def test_a_single_step_changes_the_adapter(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    setup = setup_here(Method.LORA, gradient_accumulation_steps=16)
    hyperparameters = {"n_epochs": 1, "warmup_ratio": 0.1}
    request = request_for(tiny_model, conversations, tmp_path, setup, hyperparameters=hyperparameters)
    _, result, root = succeed(request)
    assert result.steps == 1
    with zipfile.ZipFile(root / result.files["adapter.zip"]) as packed:
        weights = load(packed.read("adapter_model.safetensors"))
    moved = [name for name, tensor in weights.items() if "lora_B" in name and tensor.any()]
    assert len(moved) == sum("lora_B" in name for name in weights) > 0


def test_a_validation_file_is_what_is_evaluated(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    request = request_for(
        tiny_model, conversations, tmp_path, setup_here(Method.LORA), validation_path=str(conversations)
    )
    _, result, _ = succeed(request)
    assert result.steps == 12  # all 24 rows are trained
    assert result.final_valid_loss is not None
    assert math.isfinite(result.final_valid_loss)


def test_a_run_that_learns_nothing_ends_with_a_word_of_it(tmp_path: Path, conversations: Path) -> None:
    """A projection of zeros hands nothing back to the layers before it."""
    model = make_tiny_model(tmp_path / "model", tie_word_embeddings=False)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"].zero_()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    finished = run_child(request_for(model, conversations, tmp_path / "run", setup_here(Method.LORA)))
    (error,) = finished.of(ErrorReport)
    assert error.code == "no_gradient"
    assert "exactly 0 in 2 steps in a row, up to step 2" in error.message
