"""Compiled layers: one code for all of a kind and every batch, the same numbers, and no run lost to the compiler."""

import json
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor_config

from planner.setup import Method, TrainingSetup
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import Finished, request_for, run_child, setup_for
from tests.unit.training.test_batches import examples
from tests.unit.training.varlen import reference_varlen_attn
from worker.protocol import ErrorReport, MessageReport, MetricsReport, Report, ResultReport
from worker.training.data.batches import Layout, collate
from worker.training.data.packing import Row
from worker.training.memory import MemoryWatch
from worker.training.model import attention, compiling
from worker.training.model.compiling import Compilation, compile_layers, outlast_compiler
from worker.training.model.forward import score
from worker.training.model.gradients import NoGradientError
from worker.training.model.loading import LoadedModel, load_for_training
from worker.training.objectives.likelihood import likelihood
from worker.training.reporting import Reporter
from worker.training.stopping import StopSignal

# What torch's compiler does itself, and would be warned of if it were not the compiler.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CPU = torch.device("cpu")
LENGTHS = [70, 30, 12, 90, 44, 20]
BATCHES: list[list[Row]] = [[(0,), (1,)], [(2,), (3,)], [(1,), (3,), (0,)], [(4,), (5,)]]


class Said(Reporter):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def send(self, report: Report) -> None:
        self.reports.append(report)

    @property
    def warnings(self) -> list[str]:
        return [said.message for said in self.reports if isinstance(said, MessageReport)]


@pytest.fixture
def deep_model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "deep", dtype="float32", num_hidden_layers=4)


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    # `compile_layers` sets it; so it is put back.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    torch.compiler.reset()
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def load(model: Path, setup: TrainingSetup) -> LoadedModel:
    with patch(
        "worker.training.model.loading.takes_varlen_attention", lambda *_: False
    ):  # as on CUDA without flash attention
        return load_for_training(model, setup, 0, CPU)


def compiled(loaded: LoadedModel, cache: Path, backend: Any) -> LoadedModel:
    with patch.object(compiling, "BACKEND", backend):
        compile_layers(loaded, cache)
    return loaded


def train(loaded: LoadedModel, layout: Layout = Layout.PADDED) -> dict[str, torch.Tensor]:
    """The gradients of all batches, and their losses."""
    data = examples(LENGTHS)
    found: dict[str, torch.Tensor] = {}
    for number, rows in enumerate(BATCHES):
        loss, _ = score(loaded, collate(data, rows, layout), 100.0)
        loss.backward()
        found[f"loss {number}"] = loss.detach()
    return found | {name: parameter.grad for name, parameter in loaded.parameters if parameter.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", list(Method))
def test_all_layers_and_all_batches_share_their_code(
    deep_model: Path, tmp_path: Path, method: Method, checkpointing: bool
) -> None:
    setup = setup_for(method, dtype="float32", gradient_checkpointing=checkpointing)
    expected = train(load(deep_model, setup))
    counter = CompileCounterWithBackend("eager")
    found = train(compiled(load(deep_model, setup), tmp_path / "cache", counter))
    assert list(found) == list(expected), "no parameter has another name"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    # What a frozen embedding hands to the first layer needs no gradient, unlike what goes into the others.
    assert counter.frame_count == (1 if method is Method.FULL or checkpointing else 2)


def test_factors_that_are_cast_together_are_read_anew_by_compiled_layers(deep_model: Path, tmp_path: Path) -> None:
    setup = setup_for(Method.LORA)  # float32 adapters on a bfloat16 base
    plain, counter = load(deep_model, setup), CompileCounterWithBackend("eager")
    fast = compiled(load(deep_model, setup), tmp_path / "cache", counter)
    for _ in range(2):
        expected, found = train(plain), train(fast)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=2e-2, atol=1e-3, msg=name)
        with torch.no_grad():
            for loaded in (plain, fast):
                for _, parameter in loaded.parameters:
                    parameter += 0.05
                    parameter.grad = None
    assert counter.frame_count == 2


@torch.library.custom_op("tunewright_tests::varlen_attn", mutates_args={})
def _varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scale: float,
    left: int,
    right: int,
) -> torch.Tensor:
    """torch's varlen_attn as the compiler meets it: an operator that it does not look into."""
    return reference_varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scale, window_size=(left, right), enable_gqa=True
    ).contiguous()


@_varlen_attn.register_fake
def _(query: torch.Tensor, *_args: object) -> torch.Tensor:
    return torch.empty_like(query)


_varlen_attn.register_autograd(lambda _ctx, gradient: (gradient, *7 * [None]))  # only whether there is one


def test_packed_rows_of_any_number_of_examples_share_it_too(deep_model: Path, tmp_path: Path) -> None:
    def op(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *cuts: Any, **options: Any) -> torch.Tensor:
        return _varlen_attn(query, key, value, cuts[0], cuts[2], options["scale"], *options["window_size"])

    counter = CompileCounterWithBackend("eager")
    data = examples([70, 30, 12, 90, 41, 20, 8, 33])
    with patch.object(attention, "takes_flash", lambda _query: True), patch.object(attention, "varlen_attn", op):
        loaded = load_for_training(deep_model, setup_for(Method.LORA, dtype="float32", packing=True), 0, CPU)
        rows: list[Row] = [(0, 1), (2, 3, 4), (5,), (1, 2, 6, 7)]
        expected = [score(loaded, collate(data, [row], Layout.PADDING_FREE), 100.0)[0] for row in rows]
        compiled(loaded, tmp_path / "cache", counter)
        found = [score(loaded, collate(data, [row], Layout.PADDING_FREE), 100.0)[0] for row in rows]
    assert loaded.is_varlen
    torch.testing.assert_close(found, expected)
    assert counter.frame_count == 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_two_layers_keep_for_backward_is_no_more_than_was_planned(tmp_path: Path, checkpointing: bool) -> None:
    setup = setup_for(Method.LORA, dtype="float32", gradient_checkpointing=checkpointing)
    more, fewer = (make_tiny_model(tmp_path / str(n), dtype="float32", num_hidden_layers=n) for n in (4, 2))
    plain = _kept_bytes(load(more, setup)) - _kept_bytes(load(fewer, setup))
    torch.compiler.reset()
    backend = "aot_eager_decomp_partition"  # inductor's choice of what to keep, without its code
    found = [_kept_bytes(compiled(load(model, setup), tmp_path / "cache", backend)) for model in (more, fewer)]
    assert 0 < found[0] - found[1] <= plain


def _kept_bytes(loaded: LoadedModel) -> int:
    """Bytes of all activations that one forward keeps; not single numbers, which compiled code keeps as tensors."""
    own = {parameter.untyped_storage().data_ptr() for parameter in loaded.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.dim() and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = score(loaded, collate(examples(LENGTHS), BATCHES[0], Layout.PADDED), 100.0)
    loss.backward()  # what it keeps is alive until here
    return sum(kept.values())


def test_evaluation_is_not_compiled(deep_model: Path, tmp_path: Path) -> None:
    counter = CompileCounterWithBackend("eager")
    loaded = compiled(load(deep_model, setup_for(Method.LORA, dtype="float32")), tmp_path / "cache", counter)
    assert likelihood(loaded, examples(LENGTHS), 2, MemoryWatch(CPU, None), StopSignal())
    assert counter.frame_count == 0
    train(loaded)
    assert counter.frame_count == 2


def test_what_a_killed_run_left_is_not_taken_for_compiled(deep_model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "half.so").write_bytes(b"\x7fELF")
    compiled(load(deep_model, setup_for(Method.LORA)), tmp_path / "cache", "eager")
    assert not (tmp_path / "cache" / "half.so").exists()


def test_a_compiler_that_fails_costs_nothing_but_a_warning(deep_model: Path, tmp_path: Path) -> None:
    attempts = []

    def failing(*_: object) -> Any:
        attempts.append(1)
        raise RuntimeError("no such instruction\nin the assembler")

    expected = train(load(deep_model, setup_for(Method.LORA, dtype="float32")))
    loaded = compiled(load(deep_model, setup_for(Method.LORA, dtype="float32")), tmp_path / "cache", failing)
    loaded.parameters[0][1].grad = torch.ones_like(loaded.parameters[0][1])  # of a micro-batch before

    def undo() -> None:
        for _, parameter in loaded.parameters:
            parameter.grad = None

    said = Said()
    found = outlast_compiler(Compilation(is_on=True), lambda: train(loaded), undo, said)
    torch.testing.assert_close(found, expected)
    (warning,) = said.warnings
    assert "no such instruction" in warning
    assert "assembler" not in warning
    assert len(attempts) == 1, "it is not asked again"


def test_a_machine_without_a_compiler_trains_all_the_same(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", dtype="float32", num_hidden_layers=1)
    expected = train(load(model, setup_for(Method.FULL, dtype="float32")))
    loaded = compiled(load(model, setup_for(Method.FULL, dtype="float32")), tmp_path / "cache", "inductor")
    said = Said()
    with inductor_config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),), "compile_threads": 1}):
        found = outlast_compiler(Compilation(is_on=True), lambda: train(loaded), lambda: None, said)
    torch.testing.assert_close(found, expected)
    (warning,) = said.warnings
    assert warning.startswith("torch.compile failed (No working C++ compiler found")


def test_what_is_no_failure_of_the_compiler_is_raised() -> None:
    said = Said()
    with pytest.raises(torch.OutOfMemoryError):
        outlast_compiler(Compilation(is_on=True), _run_out_of_memory, lambda: None, said)
    assert said.warnings == []


def test_layers_that_lose_their_gradients_are_trained_uncompiled() -> None:
    said, compilation = Said(), Compilation(is_on=True)

    def train_something() -> int:
        if compilation.is_on:
            raise NoGradientError("2 of 4 trained tensors got no gradient: nothing would be learned there.")
        return 7

    assert outlast_compiler(compilation, train_something, lambda: None, said) == 7
    (warning,) = said.warnings
    assert warning.startswith("torch.compile failed (2 of 4 trained tensors got no gradient)")
    with pytest.raises(NoGradientError):
        outlast_compiler(compilation, _train_nothing, lambda: None, said)
    assert len(said.warnings) == 1, "what is no fault of the compiler is not blamed on it"


def _train_nothing() -> None:
    raise NoGradientError("All got no gradient.")


def _run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def succeed(model: Path, data: Path, directory: Path, setup: TrainingSetup) -> tuple[Finished, list[float]]:
    request = request_for(model, data, directory, setup, hyperparameters={"n_epochs": 1})
    finished = run_child(request)
    assert finished.of(ErrorReport) == []
    assert len(finished.of(ResultReport)) == 1
    return finished, [said.train_loss for said in finished.of(MetricsReport) if said.train_loss is not None]


@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="torch.compile needs g++ and Python's headers",
)
def test_a_compiled_run_is_the_run_without(tmp_path: Path) -> None:
    """torch's own compiler, in a child, from the probe to the proof of the adapter."""
    model = make_tiny_model(tmp_path / "model", dtype="float32", num_hidden_layers=1)
    turns = [{"role": "user", "content": "Does it glow?"}, {"role": "assistant", "content": "The lamp glows."}]
    data = tmp_path / "alike.jsonl"  # rows of one length: one variant to compile
    data.write_text((json.dumps({"messages": turns}) + "\n") * 8, encoding="utf-8")
    plain = setup_for(Method.LORA, dtype="float32", lora_target_modules=("q_proj",))
    wanted = replace(plain, torch_compile=True)
    _, expected = succeed(model, data, tmp_path / "plain", plain)

    finished, losses = succeed(model, data, tmp_path / "compiled", wanted)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert not [said for said in finished.of(MessageReport) if "torch.compile" in said.message]
    assert list((tmp_path / "compiled" / "compiled").rglob("*.so")), "it was compiled"
