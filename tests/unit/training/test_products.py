"""Products in bfloat16 are the same numbers with and without instructions for them."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from worker.training import products

ROWS, INNER, COLUMNS = 2 * products.WIDENED_ROWS, 48, 32


@pytest.mark.parametrize("has_bfloat16", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_are_rounded_once(has_bfloat16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CPU_HAS_BFLOAT16", has_bfloat16)
    torch.manual_seed(0)
    inputs, weight = torch.randn(ROWS, INNER, dtype=dtype), torch.randn(COLUMNS, INNER, dtype=dtype)
    bias, gradient = torch.randn(COLUMNS, dtype=dtype), torch.randn(ROWS, COLUMNS, dtype=dtype)
    exact = {"rtol": torch.finfo(dtype).eps, "atol": (8 if dtype == torch.bfloat16 else 100) * torch.finfo(dtype).eps}

    outputs = products.linear(inputs, weight, bias)
    wanted = inputs.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(outputs, wanted.to(dtype), **exact)
    wanted = (gradient.double() @ weight.double()).to(dtype)
    torch.testing.assert_close(products.product(gradient, weight), wanted, **exact)
    into = torch.empty(ROWS, INNER, dtype=dtype)
    assert products.product(gradient, weight, out=into) is into
    torch.testing.assert_close(into, wanted, **exact)


def test_a_dry_run_counts_no_widened_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CPU_HAS_BFLOAT16", False)
    with FakeTensorMode():
        weight = torch.empty(COLUMNS, INNER, dtype=torch.bfloat16)
        assert not products._is_slow(ROWS, weight)
    assert products._is_slow(ROWS, torch.empty(COLUMNS, INNER, dtype=torch.bfloat16))
    assert not products._is_slow(1, torch.empty(COLUMNS, INNER, dtype=torch.bfloat16))
