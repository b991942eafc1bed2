"""Packed linear layers give what plain ones give, for any number of rows."""

from __future__ import annotations

import pytest
import torch

from workers.runners.packed_linear import PackedLinear, pack_linears

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@needs_onednn
@pytest.mark.parametrize("num_rows", [1, 3, 8, 33, 256])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_the_same_but_for_rounding(num_rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 160, bias=bias)
    inputs = torch.randn(2, num_rows, 96)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(inputs), linear(inputs), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_all_plain_float32_linears_of_a_model_are_replaced() -> None:
    class Special(torch.nn.Linear):  # type: ignore[misc]  # torch is not followed
        """Not a plain one: what it computes is its own business."""

    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4),
        torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 2)),
        Special(2, 2),
        torch.nn.Linear(2, 2, dtype=torch.bfloat16),
    )
    assert pack_linears(model) == 2
    assert isinstance(model[0], PackedLinear)
    assert isinstance(model[1][1], PackedLinear)
    assert type(model[2]) is Special
    assert type(model[3]) is torch.nn.Linear
