"""Packed linear layers against nn.Linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from feedworks.nn.packed import PackedLinear, pack_linears


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(0, 24), (1, 24), (7, 24), (3, 130, 24), (2, 0, 24), (24,)])
def test_a_packed_layer_is_nn_linear(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias)
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x), rtol=1e-5, atol=1e-5)


def test_rows_may_lie_apart():
    torch.manual_seed(0)
    linear, wide = nn.Linear(24, 40), torch.randn(3, 9, 50)
    with torch.inference_mode():
        packed = PackedLinear(linear)
        for x in (wide[:, :4, 3:27], wide.transpose(0, 1)[..., :24]):
            torch.testing.assert_close(packed(x), linear(x), rtol=1e-5, atol=1e-5)


def test_layers_of_another_kind_stay():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(
        nn.Linear(4, 4), nn.Linear(4, 4).double(), Own(4, 4), nn.Sequential(nn.Linear(4, 2))
    )
    assert pack_linears(model) == 2
    assert [type(layer).__name__ for layer in model] == ["PackedLinear", "Linear", "Own", "Sequential"]
    assert [name for name, _ in model.named_parameters()] == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert "in_features=4, out_features=2" in repr(model[3])


def test_a_table_that_a_layer_shares_stays():
    table, head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
    head.weight = table.weight
    model = nn.ModuleDict({"table": table, "head": head})
    expected = table.weight.clone()
    assert pack_linears(model) == 1
    torch.testing.assert_close(model["table"].weight, expected)
    torch.testing.assert_close(model["head"](torch.eye(4)).T, expected, rtol=1e-6, atol=1e-6)
