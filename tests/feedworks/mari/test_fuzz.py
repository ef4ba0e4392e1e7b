"""Random graphs of all that a ranking model does, traps among it: the twin equals the model on every one."""

from __future__ import annotations

import collections

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .test_convert import twin_of

WIDTHS = (3, 2, 2)


class Random(nn.Module):
    """A graph drawn by `choose`: a pool of values grows by operations on earlier ones.

    Args:
        choose: gives an integer from 0 to below its argument.
        size: number of operations.
    """

    def __init__(self, choose, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[tuple] = []
        pool = list(WIDTHS)
        for _ in range(size):
            kind = choose(len(KINDS))
            one, other = (
                max(choose(len(pool)), choose(len(pool))),
                choose(len(pool)),
            )  # one of the later values
            self.steps.append((kind, one, other, choose(7)))
            pool.append(self._width(kind, pool[one], pool[other], choose(7)))

    def _layer(self, layer: nn.Module) -> None:
        self.layers.append(layer)

    def _width(self, kind: int, one: int, other: int, number: int) -> int:
        name = KINDS[kind]
        if name == "linear":
            self._layer(nn.Linear(one, 2 + number % 4))
            return 2 + number % 4
        if name == "join_linear":
            self._layer(nn.Linear(one + other, 3))
            return 3
        if name == "shared_linear":
            self._layer(nn.Linear(one, one))
            return one
        if name == "batch_norm":
            norm = nn.BatchNorm1d(one)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            self._layer(norm)
            return one
        if name == "layer_norm":
            self._layer(nn.LayerNorm(one))
            return one
        if name == "dropout":
            self._layer(nn.Dropout(0.5))
            return one
        if name == "join":
            return one + other
        if name == "cut":
            return max(1, one - 1)
        return one

    def forward(self, user: Tensor, item: Tensor, cross: Tensor) -> Tensor:
        pool, layers = [user, item, cross], iter(self.layers)
        for kind, one, other, number in self.steps:
            pool.append(OPERATIONS[KINDS[kind]](pool[one], pool[other], number, layers))
        return torch.cat(pool[3:], dim=-1) if len(pool) > 3 else user + 0


def _fitted(x: Tensor, like: Tensor) -> Tensor:
    return torch.cat([x] * (1 + like.shape[-1] // x.shape[-1]), dim=-1)[..., : like.shape[-1]]


def _in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x.mul_(2).add_(1)
    return x


def _twice(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(torch.tanh(layer(x)))


OPERATIONS = {
    "linear": lambda x, y, n, layers: next(layers)(x),
    "join_linear": lambda x, y, n, layers: next(layers)(torch.cat([x, y], dim=-1)),
    "shared_linear": lambda x, y, n, layers: _twice(x, next(layers)),
    "batch_norm": lambda x, y, n, layers: next(layers)(x),
    "layer_norm": lambda x, y, n, layers: next(layers)(x),
    "dropout": lambda x, y, n, layers: next(layers)(x),
    "join": lambda x, y, n, layers: torch.cat([x, y], dim=-1),
    "cut": lambda x, y, n, layers: x[..., 1:] if x.shape[-1] > 1 else x,
    "add": lambda x, y, n, layers: x + _fitted(y, x),
    "subtract": lambda x, y, n, layers: x - _fitted(y, x) * 0.5,
    "multiply": lambda x, y, n, layers: x * _fitted(y, x),
    "scale": lambda x, y, n, layers: (x * (n - 3) + n) / 3,
    "columns_scale": lambda x, y, n, layers: x * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype) - 0.5,
    "relu": lambda x, y, n, layers: torch.relu(x),
    "tanh": lambda x, y, n, layers: torch.tanh(x),
    "softmax": lambda x, y, n, layers: x.softmax(dim=-1),
    "mean": lambda x, y, n, layers: x - x.mean(dim=-1, keepdim=True),
    "whole_column": lambda x, y, n, layers: x - x.mean(dim=0, keepdim=True),
    "rows_softmax": lambda x, y, n, layers: x.softmax(dim=0),
    "flip": lambda x, y, n, layers: x.flip(-1),
    "in_place": lambda x, y, n, layers: _in_place(x),
    "view": lambda x, y, n, layers: x.reshape(-1, 1, x.shape[-1]).transpose(1, 2).squeeze(2),
    "fold": lambda x, y, n, layers: x.reshape(-1).reshape(x.shape),
    "unsqueeze": lambda x, y, n, layers: (x.unsqueeze(1) + x.unsqueeze(1).expand(-1, 3, -1)).sum(dim=1),
    "attention": lambda x, y, n, layers: torch.tanh(
        x.unsqueeze(1).expand(-1, 2, -1) - torch.stack([_fitted(y, x), x], dim=1)
    ).amax(dim=1),
}
# Joins and products often, so that there is something to cut.
KINDS = (*OPERATIONS, *("linear", "join", "join_linear", "join_linear") * 3)


def check(choose, size: int, tally: collections.Counter | None = None) -> None:
    torch.manual_seed(size)
    model = Random(choose, size)
    inputs = [torch.randn(7, width, dtype=torch.double) for width in WIDTHS]
    report = twin_of(model, inputs, ("user", "item", "cross"))
    if tally is not None:
        tally["cut" if report.sites else "nothing to cut"] += 1


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_twin_of_any_graph_is_equal(data):
    check(lambda count: data.draw(st.integers(0, count - 1)), data.draw(st.integers(1, 9)))


@pytest.mark.slow
def test_the_twins_of_2000_graphs_are_equal():
    tally: collections.Counter = collections.Counter()
    generator = torch.Generator().manual_seed(0)

    def choose(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    for _ in range(2000):
        check(choose, 1 + choose(12), tally)
    assert tally["cut"] > 500, tally
    assert tally["nothing to cut"] > 100, tally
