"""Attention cut into examples is attention within each example."""

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import _registry, restore_flash_attention_impl

from planner.setup import VARLEN_FLASH, Method, TrainingSetup
from tests.unit.training.runs import setup_for
from tests.unit.training.varlen import HALVES, reference_flash, reference_varlen_attn
from worker.protocol import MessageReport, Report
from worker.training.data.bounds import SequenceBounds
from worker.training.model import flash
from worker.training.model.attention import varlen_attention
from worker.training.model.flash import _takes_hopper_kernels, flash_problem, proved_attention
from worker.training.reporting import Reporter

HEADS, KV_HEADS, DIM = 4, 2, 8
CPU = torch.device("cpu")


def reference(query, key, value, lengths, window=None, softcap=None):  # type: ignore[no-untyped-def]
    outputs, start = [], 0
    for length in lengths:
        q, k, v = (t[:, :, start : start + length] for t in (query, key, value))
        k, v = k.repeat_interleave(HEADS // KV_HEADS, 1), v.repeat_interleave(HEADS // KV_HEADS, 1)
        scores = q @ k.transpose(2, 3) * DIM**-0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        seen = distance >= 0
        if window is not None:
            seen &= distance < window
        outputs.append(functional.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ v)
        start += length
    return torch.cat(outputs, 2).transpose(1, 2)


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize(
    ("lengths", "window", "softcap"),
    [
        ((5, 1, 9), None, None),
        ((16, 16), None, None),
        ((5, 12), 4, None),
        ((5, 12), None, 2.0),
        ((600, 20), None, None),  # long rows go through the fused kernel
        ((600, 20), 64, None),
    ],
)
def test_each_example_sees_itself_alone(
    lengths: tuple[int, ...], window: int | None, softcap: float | None, flash: bool
) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, sum(lengths), DIM, requires_grad=True) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    bounds = SequenceBounds.of(lengths, torch.device("cpu"))
    with reference_flash(*[torch.float32] if flash else []) as calls:
        output, _ = varlen_attention(
            torch.nn.Module(), *tensors, None, sliding_window=window, softcap=softcap, bounds=bounds
        )
    assert calls == ([len(lengths)] if flash and softcap is None else []), "flash attention has no soft cap"
    expected = reference(*tensors, lengths, window, softcap)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((output * weight).sum(), tensors)
    theirs = torch.autograd.grad((expected * weight).sum(), tensors)
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_dropout_and_float32_are_not_for_flash_attention() -> None:
    tensors = [torch.randn(1, heads, 8, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    bounds = SequenceBounds.of((3, 5), torch.device("cpu"))
    with reference_flash(*HALVES) as calls:
        varlen_attention(torch.nn.Module(), *tensors, None, bounds=bounds)
        varlen_attention(torch.nn.Module(), *(t.bfloat16() for t in tensors), None, dropout=0.1, bounds=bounds)
        assert not calls
        varlen_attention(torch.nn.Module(), *(t.bfloat16() for t in tensors), None, bounds=bounds)
    assert calls == [2]


def test_a_device_whose_flash_attention_is_right_passes() -> None:
    with reference_flash(*HALVES) as calls:
        assert flash_problem(HEADS, KV_HEADS, 16, torch.device("cpu")) is None
    assert calls == [4, 4], "with and without a window"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"window_size": (-1, 0)}, "is wrong on this device: its output differs"),  # windows ignored
        ({"window_size": (-1, -1)}, "is wrong on this device: its output differs"),  # not causal
        ({"scale": 1.0}, "is wrong on this device: its output differs"),
    ],
)
def test_flash_attention_that_is_wrong_is_found(broken: dict[str, object], said: str) -> None:
    with reference_flash(*HALVES, op=lambda *args, **options: reference_varlen_attn(*args, **(options | broken))):
        assert said in str(flash_problem(HEADS, KV_HEADS, 16, torch.device("cpu")))


def test_wrong_gradients_and_missing_kernels_are_found_too() -> None:
    with reference_flash(
        *HALVES, op=lambda q, k, v, *rest, **o: reference_varlen_attn(q, k.detach() + 0 * k, v, *rest, **o)
    ):
        assert "gradient of the key" in str(flash_problem(HEADS, KV_HEADS, 16, torch.device("cpu")))
    with reference_flash(*HALVES, op=missing):
        problem = flash_problem(HEADS, KV_HEADS, 16, torch.device("cpu"))
    assert problem == "cannot run on this device (no kernel image is available)"
    with reference_flash(*HALVES, op=of_an_older_torch):
        assert "unexpected keyword argument 'enable_gqa'" in str(
            flash_problem(HEADS, KV_HEADS, 16, torch.device("cpu"))
        )


def of_an_older_torch(
    query: torch.Tensor, *_rest: object, scale: float | None = None, window_size: tuple[int, int] = (-1, -1)
) -> torch.Tensor:
    """The operator before it knew grouped heads."""
    raise AssertionError("it is not called without them")


def missing(*_args: object, **_options: object) -> torch.Tensor:
    """The operator where it was built for other devices."""
    raise RuntimeError("no kernel image is available\nand a long backtrace")


class Heard(Reporter):
    """A reporter that keeps what it is told to send."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def send(self, report: Report) -> None:
        self.reports.append(report)


def flash_setup() -> TrainingSetup:
    return setup_for(Method.LORA, packing=True, attn_implementation=VARLEN_FLASH)


def config_of(model: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return config


def test_a_run_falls_back_to_a_mask_and_says_so(tiny_model: Path) -> None:
    setup, config, heard = flash_setup(), config_of(tiny_model), Heard()
    with reference_flash(*HALVES):
        assert proved_attention(setup, config, CPU, heard) == setup
    assert not heard.reports
    with reference_flash(*HALVES, op=missing):
        assert proved_attention(setup, config, CPU, heard) == replace(setup, attn_implementation="sdpa")
    (report,) = heard.reports
    assert isinstance(report, MessageReport)
    assert report.level == "warn"
    assert "cannot run on this device (no kernel image is available)" in report.message
    assert proved_attention(replace(setup, attn_implementation="sdpa"), config, CPU, heard).packing
    assert len(heard.reports) == 1


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An H100 with FlashAttention 3's package, as far as torch and Python tell."""
    (tmp_path / "flash_attn_interface.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    return monkeypatch


def test_flash_attention_3_is_for_hopper_gpus_with_its_package(hopper: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = torch.device("cuda")
    assert _takes_hopper_kernels(cuda)
    assert not _takes_hopper_kernels(CPU)
    hopper.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert not _takes_hopper_kernels(cuda)
    hopper.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    (tmp_path / "flash_attn_interface.py").unlink()
    importlib.invalidate_caches()
    assert not _takes_hopper_kernels(cuda)


class Switch:
    """FlashAttention 3 as torch's registry knows it, with `kernels` in its place."""

    def __init__(self, kernels: Callable[..., torch.Tensor]) -> None:
        self.kernels, self.is_on = kernels, False

    def register(self) -> "Switch":
        """What switches torch over."""
        self.is_on = True
        return self

    def remove(self) -> None:
        """What switches it back."""
        self.is_on = False

    def attend(self, *args: Any, **options: Any) -> torch.Tensor:
        """torch's operator."""
        return (self.kernels if self.is_on else reference_varlen_attn)(*args, **options)


@pytest.fixture
def _on_hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flash, "_takes_hopper_kernels", lambda _device: True)
    yield
    restore_flash_attention_impl()


@pytest.mark.usefixtures("_on_hopper")
def test_flash_attention_3_is_used_where_it_is_right_and_torchs_own_where_not(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, config, heard = flash_setup(), config_of(tiny_model), Heard()
    right, wrong = Switch(reference_varlen_attn), Switch(missing)
    for switch in (right, wrong):
        monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", switch.register)
        with reference_flash(*HALVES, op=switch.attend):
            assert proved_attention(setup, config, CPU, heard) == setup, "torch's own is right"
    assert (right.is_on, wrong.is_on) == (False, False), "another that is activated ends the first"
    (report,) = heard.reports
    assert "FlashAttention 3 cannot run on this device (no kernel image is available). torch's own" in str(report)


@pytest.mark.usefixtures("_on_hopper")
def test_a_package_of_flash_attention_3_for_another_torch_is_no_end(
    tiny_model: Path, hopper: pytest.MonkeyPatch
) -> None:
    setup, heard = flash_setup(), Heard()
    with reference_flash(*HALVES):  # the package is there, its kernels are not
        assert proved_attention(setup, config_of(tiny_model), CPU, heard) == setup
    (report,) = heard.reports
    assert "FlashAttention 3 cannot be loaded (Module 'flash_attn_interface' does not expose FA3" in str(report)
