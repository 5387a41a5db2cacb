"""`tunewright plan` answers without a service, a database or a GPU."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cli.plan import estimate_statistics
from cli.plan_view import AlternativeView, PlanView, batch_line, method_line, show_plan
from core.datasets.examples import DataFormat, DataKind
from planner.wording import duration, gib
from tests.tiny_models import make_tiny_model

GIB = 1024**3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve conversations."""
    path = tmp_path / "train.jsonl"
    turns = [{"role": "user", "content": "q" * 40}, {"role": "assistant", "content": "a" * 80}]
    path.write_text((json.dumps({"messages": turns}) + "\n") * 12)
    return path


def _plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNEWRIGHT_")}
    return subprocess.run(
        [sys.executable, "-m", "cli", "plan", *arguments],
        env={**kept, "COLUMNS": "140", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_catalogued_model_is_planned_without_its_files(data: Path) -> None:
    result = _plan("llama-3.1-8b", "--data", str(data), "--gpu", "24GiB")
    assert result.returncode == 0, result.stderr
    for expected in ("Plan for llama-3.1-8b", "LoRA", "predicted", "24.0 GiB free", "credits", "Why", "QLoRA"):
        assert expected in result.stdout
    assert "Tokens are estimated" in result.stdout


def test_a_model_that_fits_nowhere_names_what_would(data: Path) -> None:
    result = _plan("llama-3.3-70b-instruct", "--data", str(data), "--gpu", "24GiB")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: Nothing fits.")
    assert "GPU such as" in result.stderr


def test_a_smaller_gpu_compresses_more(data: Path) -> None:
    assert (
        "QLoRA (4-bit base), rank"
        in _plan("llama-3.1-8b", "--data", str(data), "--gpu", "12GiB").stdout.partition("Why")[0]
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("llama-3.1-8b", "--data", "missing.jsonl"), 2, "does not exist"),
        (("llama-3.1-8b", "--gpu", "fast"), 1, "neither a size such as 24GiB nor a known GPU"),
        (("no-such-model", "--gpu", "24GiB"), 1, "The model 'no-such-model' does not exist"),
    ],
)
def test_mistakes_are_named(data: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    given = arguments if "--data" in arguments else (*arguments, "--data", str(data))
    result = _plan(*given)
    assert result.returncode == code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    result = _plan("llama-3.1-8b", "--data", str(path), "--gpu", "24GiB")
    assert result.returncode == 1
    assert "2" in result.stderr
    assert "Traceback" not in result.stderr


def test_broken_rows_are_left_out_where_that_is_asked_for(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(data.read_text() + '{"messages": []}\n')
    refused = _plan("llama-3.1-8b", "--data", str(path), "--gpu", "24GiB")
    assert refused.returncode == 1
    assert "--skip-broken-rows" in refused.stderr
    planned = _plan("llama-3.1-8b", "--data", str(path), "--gpu", "24GiB", "--skip-broken-rows")
    assert planned.returncode == 0, planned.stderr
    assert "12 examples" in planned.stdout
    assert "1 broken row left out: Row 13" in " ".join(planned.stderr.split())


def test_tokens_are_estimated_from_the_length_of_the_text(data: Path) -> None:
    statistics = estimate_statistics(data, DataFormat("messages", DataKind.CHAT, {"messages": "messages"}))
    assert statistics.examples == 12
    assert statistics.token_lengths == (40,) * 12  # (40 + 80) / 4 of text and 5 for each of two turns
    assert (statistics.tokens, statistics.trained_tokens, statistics.sampled) == (480, 300, True)


def _shown(plan: PlanView) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(show_plan(plan))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _view(*, predicted_bytes: int, alternatives: tuple[AlternativeView, ...] = ()) -> PlanView:
    return PlanView(
        model="m", method="LoRA, rank 8", batch="8 rows per step", data="d", training="t", device="x",
        predicted_bytes=predicted_bytes, bound_bytes=GIB, free_bytes=10 * GIB,
        terms={"base_weights_bytes": 4 * GIB, "adapters_bytes": 0}, seconds=100.0, tokens_per_second=50.0,
        credits=1234, rate=600, reasons=("Because.",), alternatives=alternatives,
    )  # fmt: skip


def test_the_memory_bar_is_to_scale() -> None:
    bar = next(line for line in _shown(_view(predicted_bytes=5 * GIB)).splitlines() if "█" in line)
    filled, bound, free = (bar.count(cell) for cell in "█▒░")
    assert (filled, bound) == (23, 5)
    assert filled + bound + free == 46


def test_of_many_settings_one_line_a_method_is_shown() -> None:
    def other(required_gib: int, price: int, *, fits: bool) -> AlternativeView:
        return AlternativeView("QLoRA", fits, required_gib * GIB, 60.0, price, f"reason {required_gib}")

    text = _shown(_view(predicted_bytes=GIB, alternatives=(other(3, 9, fits=True), other(2, 5, fits=True))))
    assert "reason 2" in text
    assert "reason 3" not in text
    text = _shown(_view(predicted_bytes=GIB, alternatives=(other(30, 1, fits=False), other(20, 9, fits=False))))
    assert "reason 20" in text
    assert "reason 30" not in text


def test_numbers_read_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (12, 89, 90, 3600, 7200, 9000, 172_740, 172_800, 1e6)] == [
        "12 s", "89 s", "2 min", "60 min", "2 h 00 min", "2 h 30 min",
        "47 h 59 min", "2 days", "12 days",
    ]  # fmt: skip
    assert (gib(512 * 1024**2), gib(GIB * 3 // 2)) == ("512 MiB", "1.5 GiB")
    assert method_line("lora", 8, 16) == "LoRA, rank 8, alpha 16"
    assert method_line("full", None) == "full fine-tuning"
    assert batch_line(1, 8, checkpointing=True) == "1 row × 8 = 8 per step, gradient checkpointing"


def test_every_known_gpu_is_compared_without_a_data_set() -> None:
    result = _plan("meta-llama/Llama-3.1-8B", "--gpu", "all")
    assert result.returncode == 0, result.stderr
    for expected in ("RTX 3080", "QLoRA", "H200", "LoRA, rank", "credits", "No --data: planned for 1,000 examples"):
        assert expected in result.stdout
    assert "nothing fits" in _plan("llama-3.3-70b-instruct", "--gpu", "all").stdout


def test_a_plan_is_dry_run_on_request(data: Path) -> None:
    result = _plan("smollm2-135m-instruct", "--data", str(data), "--gpu", "24GiB", "--dry-run")
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("Dry-run:"))
    assert "allocated at the peak, in" in line
    error = float(result.stdout.partition("Predicted:")[2].partition("%")[0].split(",")[1])
    assert abs(error) <= 3


def test_an_architecture_without_a_formula_is_planned_from_a_dry_run(data: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    make_tiny_model(models / "strange", family="stablelm")
    result = _plan("strange", "--data", str(data), "--gpu", "24GiB", "--models", str(models))
    assert result.returncode == 0, result.stderr
    assert "no formula for stablelm" in " ".join(result.stdout.replace("│", " ").split())
    assert "Dry-running" in result.stderr
    for method in ("QLoRA", "LoRA", "full fine-tuning"):
        assert method in result.stdout


def test_what_cannot_be_built_is_refused(data: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    tiny = make_tiny_model(models / "alien")
    config = json.loads((tiny / "config.json").read_text()) | {"model_type": "no_such_family"}
    (tiny / "config.json").write_text(json.dumps(config))
    result = _plan("alien", "--data", str(data), "--gpu", "24GiB", "--models", str(models))
    assert result.returncode == 1
    assert "no_such_family" in result.stderr
    assert "Traceback" not in result.stderr
