"""Random graphs of all that a ranking model does, traps among it: the twin equals the model on every one."""

from __future__ import annotations

import collections

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from feedworks.mari.convert import _Planner, reparameterise
from feedworks.mari.programs import export_rows
from feedworks.mari.sweep import Options

from .test_convert import REQUEST_B

WIDTHS = (3, 2, 2)
HISTORY, WORDS, EMBEDDING = 4, 9, 3
SIDES = ("user", "item", "cross", "user", "item")


class Random(nn.Module):
    """A graph drawn by `choose`: a pool of values grows by operations on earlier ones.

    Takes numbers of the user, the item and the crossing, and, if they are given, words of the user's history
    and of the item.

    Args:
        choose: gives an integer from 0 to below its argument.
        size: number of operations.
    """

    def __init__(self, choose, size: int, *, words: bool = False, several: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[tuple] = []
        self.words = nn.Embedding(WORDS, EMBEDDING) if words else None
        self.several = several
        pool = [*WIDTHS, EMBEDDING, EMBEDDING] if words else [*WIDTHS]
        kinds = (*KINDS, *tuple(WORDY) * 3) if words else KINDS
        for _ in range(size):
            kind = kinds[choose(len(kinds))]
            one = max(choose(len(pool)), choose(len(pool)))  # one of the later values
            self.steps.append((kind, one, choose(len(pool)), choose(7)))
            pool.append(self._width(*self.steps[-1], pool))

    def _width(self, kind: str, one: int, other: int, number: int, pool: list[int]) -> int:
        own, joined = pool[one], pool[one] + pool[other]
        layers = {
            "linear": lambda: nn.Linear(own, 2 + number % 4),
            "matmul": lambda: nn.Linear(own, 3, bias=False),
            "einsum": lambda: nn.Linear(own, 2, bias=False),
            "column": lambda: nn.Linear(own, 2, bias=False),
            "join_linear": lambda: nn.Linear(joined, 3),
            "experts": lambda: nn.Linear(joined, 6),
            "shared_linear": lambda: nn.Linear(own, own),
            "fields_linear": lambda: nn.Linear(own, 2),
            "flat_linear": lambda: nn.Linear(3 * own, 2),
            "target": lambda: nn.Linear(4 * own, 2),
            "batch_norm": lambda: _fitted_norm(own),
            "layer_norm": lambda: nn.LayerNorm(own),
            "dropout": lambda: nn.Dropout(0.5),
        }
        if kind in layers:
            self.layers.append(layers[kind]())
        of_kind = {
            "linear": 2 + number % 4, "matmul": 3, "einsum": 2, "column": 2, "join_linear": 3, "experts": 3,
            "fields_linear": 2, "flat_linear": 2, "target": 2, "join": joined, "cut": max(1, own - 1),
            "total": 1, "ones": 1, "words": EMBEDDING, "attend": EMBEDDING,
        }  # fmt: skip
        return of_kind.get(kind, own)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        pool, layers = list(inputs[:3]), iter(self.layers)
        keys = query = None
        if self.words is not None:
            keys, query = self.words(inputs[3]), self.words(inputs[4])
            pool += [keys.mean(dim=1), query]
        first = len(pool)
        for kind, one, other, number in self.steps:
            if kind in WORDY:
                pool.append(WORDY[kind](pool[one], inputs, keys, query, self.words))
            else:
                pool.append(OPERATIONS[kind](pool[one], pool[other], number, layers))
        joined = torch.cat(pool[first:], dim=-1) if len(pool) > first else pool[0] + 0
        return (joined, pool[-1].sum(dim=-1), pool[0] * 2) if self.several else joined


def _fitted_norm(width: int) -> nn.Module:
    norm = nn.BatchNorm1d(width)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def _like(x: Tensor, like: Tensor) -> Tensor:
    return torch.cat([x] * (1 + like.shape[-1] // x.shape[-1]), dim=-1)[..., : like.shape[-1]]


def _fields(x: Tensor, y: Tensor) -> Tensor:
    """`(B, 3, D)`."""
    return torch.cat([x.unsqueeze(1), torch.stack([_like(y, x), x * 0.5], dim=1)], dim=1)


def _pairs(x: Tensor) -> Tensor:
    return x.sum(dim=1) ** 2 - (x**2).sum(dim=1)


def _in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x.mul_(2).add_(1)
    x[:, :1] += 1
    x.view(-1)[0] = 3
    return x


def _twice(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(torch.tanh(layer(x)))


def _experts(x: Tensor, layer: nn.Module) -> Tensor:
    one, two = F.linear(x, layer.weight[:3], layer.bias[:3]), F.linear(x, layer.weight[3:], layer.bias[3:])
    return torch.relu(one) * two.softmax(dim=-1)


def _target(x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    k, q = torch.stack([x, x * 2], dim=1), _like(y, x).unsqueeze(1).expand(-1, 2, -1)
    joined = torch.cat([q, k, q - k, q * k], dim=-1).reshape(-1, 4 * x.shape[-1])
    return torch.relu(layer(joined)).reshape(-1, 2, 2).sum(dim=1)


def _column(x: Tensor, weight: Tensor) -> Tensor:
    return (weight @ (x.unsqueeze(2) * 2)).squeeze(2)


def _joined_words(inputs, words: nn.Module, like: Tensor) -> Tensor:
    ids = torch.cat([inputs[3], inputs[4].unsqueeze(1)], dim=1)
    return _like(words(ids).flatten(1), like)


OPERATIONS = {
    "linear": lambda x, y, n, layers: next(layers)(x),
    "matmul": lambda x, y, n, layers: x @ next(layers).weight.t(),
    "einsum": lambda x, y, n, layers: torch.einsum("bd,nd->bn", x, next(layers).weight),
    "column": lambda x, y, n, layers: _column(x, next(layers).weight),
    "join_linear": lambda x, y, n, layers: next(layers)(torch.cat([x, y], dim=-1)),
    "experts": lambda x, y, n, layers: _experts(torch.cat([x, y], dim=-1), next(layers)),
    "shared_linear": lambda x, y, n, layers: _twice(x, next(layers)),
    "fields_linear": lambda x, y, n, layers: next(layers)(_fields(x, y))[:, n % 3],
    "flat_linear": lambda x, y, n, layers: next(layers)(torch.tanh(_fields(x, y)).flatten(1)),
    "target": lambda x, y, n, layers: _target(x, y, next(layers)),
    "fm": lambda x, y, n, layers: torch.tanh(_pairs(_fields(x, y))),
    "fields_mean": lambda x, y, n, layers: (_fields(x, y).softmax(dim=2) * 3).mean(dim=1),
    "fields_split": lambda x, y, n, layers: _fields(x, y).split([1, 2], dim=1)[n % 2][:, -1],
    "fields_softmax": lambda x, y, n, layers: (_fields(x, y).softmax(dim=1) * _fields(x, y)).sum(dim=1),
    "batch_norm": lambda x, y, n, layers: next(layers)(x),
    "batch_norm_of_rows": lambda x, y, n, layers: F.batch_norm(x, None, None, training=True),
    "layer_norm": lambda x, y, n, layers: next(layers)(x),
    "dropout": lambda x, y, n, layers: next(layers)(x),
    "join": lambda x, y, n, layers: torch.cat([x, y], dim=-1),
    "cut": lambda x, y, n, layers: x[..., 1:] if x.shape[-1] > 1 else x,
    "take": lambda x, y, n, layers: x[:, [0]].expand(-1, x.shape[-1]),
    "add": lambda x, y, n, layers: x + _like(y, x),
    "subtract": lambda x, y, n, layers: x - _like(y, x) * 0.5,
    "multiply": lambda x, y, n, layers: x * torch.tanh(_like(y, x)),
    "add_column": lambda x, y, n, layers: x + y[:, :1],
    "multiply_column": lambda x, y, n, layers: torch.sigmoid(y[:, -1:]) * x,
    "where": lambda x, y, n, layers: torch.where(x > 0, x, _like(y, x)),
    "scale": lambda x, y, n, layers: (x * (n - 3) + n) / 3,
    "columns_scale": lambda x, y, n, layers: x * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype) - 0.5,
    "row_scale": lambda x, y, n, layers: torch.ones(1, x.shape[-1], dtype=x.dtype).cumsum(1) * x,
    "relu": lambda x, y, n, layers: torch.relu(x),
    "tanh": lambda x, y, n, layers: torch.tanh(x),
    "square": lambda x, y, n, layers: torch.tanh(x * x),
    "softmax": lambda x, y, n, layers: x.softmax(dim=-1),
    "mean": lambda x, y, n, layers: x - x.mean(dim=-1, keepdim=True),
    "total": lambda x, y, n, layers: x.sum(dim=-1, keepdim=True),
    "whole_column": lambda x, y, n, layers: x - x.mean(dim=0, keepdim=True),
    "first_row": lambda x, y, n, layers: x - _like(y, x)[:1],
    "rows_softmax": lambda x, y, n, layers: x.softmax(dim=0),
    "flip": lambda x, y, n, layers: x.flip(-1),
    "sort": lambda x, y, n, layers: x.sort(dim=-1)[0],
    "in_place": lambda x, y, n, layers: _in_place(x),
    "view": lambda x, y, n, layers: x.reshape(-1, 1, x.shape[-1]).transpose(1, 2).squeeze(2),
    "fold": lambda x, y, n, layers: x.reshape(-1).reshape(x.shape),
    "unsqueeze": lambda x, y, n, layers: (x.unsqueeze(1) + x.unsqueeze(1).expand(-1, 3, -1)).sum(dim=1),
    "ones": lambda x, y, n, layers: x.new_ones(x.shape[0], 1) * n,
    "like": lambda x, y, n, layers: torch.zeros_like(x) + 1,
    "attention": lambda x, y, n, layers: torch.tanh(
        x.unsqueeze(1).expand(-1, 2, -1) - torch.stack([_like(y, x), x], dim=1)
    ).amax(dim=1),
}
WORDY = {
    "words": lambda x, inputs, keys, query, words: (keys * query.unsqueeze(1)).sum(dim=1),
    "attend": lambda x, inputs, keys, query, words: (
        (query.unsqueeze(1) @ keys.transpose(1, 2)).softmax(dim=-1) @ keys
    ).squeeze(1),
    "look_up": lambda x, inputs, keys, query, words: x + _joined_words(inputs, words, x),
}
# Joins and products often, so that there is something to cut.
KINDS = (*OPERATIONS, *("linear", "join", "join_linear", "join_linear", "experts", "flat_linear") * 3)


def drawn(choose, size: int) -> tuple[Random, list[Tensor], tuple[str, ...]]:
    """A model, 7 rows of inputs and their sides."""
    torch.manual_seed(size)
    model = Random(choose, size, words=choose(3) == 0, several=choose(4) == 0).eval().double()
    inputs = [torch.randn(7, width, dtype=torch.double) for width in WIDTHS]
    if model.words is not None:
        inputs += [torch.randint(WORDS, (7, HISTORY)), torch.randint(WORDS, (7,))]
    return model, inputs, SIDES[: len(inputs)]


def requests(inputs: list[Tensor], sides: tuple[str, ...]) -> tuple[list[Tensor], ...]:
    """One request as the model takes it and as the twin does, then three."""

    def of_user(change) -> list[Tensor]:
        return [change(x) if side == "user" else x for x, side in zip(inputs, sides, strict=True)]

    return (
        of_user(lambda x: x[:1].expand(7, *x.shape[1:])),
        of_user(lambda x: x[:1]),
        of_user(lambda x: x[:3][REQUEST_B]),
        of_user(lambda x: x[:3]),
    )


class Pack(nn.Module):
    """Several models of the same inputs as one: an export has costs of its own."""

    def __init__(self, models: list[Random]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, *inputs: Tensor) -> list:
        return [model(*inputs) if model.words else model(*inputs[:3]) for model in self.models]


def swept(models: list[Random], inputs: list[Tensor]) -> list[str]:
    """The rules run as they are, for one request and for three; what became of each model, in a word."""
    one, given_one, tiled, given_three = requests(inputs, SIDES)
    pack = Pack(models).eval()
    program, named = export_rows(pack, one, SIDES)
    planner = _Planner(program, named, Options())
    planner.plan(given_one)
    with torch.no_grad():
        equal(planner(*given_one), pack(*one))
        equal(planner(*given_three, request_B=REQUEST_B), pack(*tiled))
    return [reason(planner, nodes) for nodes in nodes_of(program, models)]


def nodes_of(program, models: list[Random]) -> list[set[str]]:
    """Names of the nodes that each model's outputs are computed from."""
    results = next(node for node in program.graph.nodes if node.op == "output").args[0]
    found, start = [], 0
    for model in models:
        count = 3 if model.several else 1
        open_nodes, names = list(results[start : start + count]), set()
        while open_nodes:
            node = open_nodes.pop()
            if node.name not in names:
                names.add(node.name)
                open_nodes += node.all_input_nodes
        found.append(names)
        start += count
    return found


def equal(got, expected) -> None:
    """The same to 12 digits of the largest number, so that differences of large ones may lose some."""
    for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12 * max(1.0, float(other.abs().max())))


def reason(planner: _Planner, nodes: set[str]) -> str:
    """What became of a graph, in a word."""
    sites = [site for site in planner.sites if site.node in nodes]
    refusals = [refusal for refusal in planner.refusals if refusal.node in nodes]
    if any(site.cut for site in sites):
        return "cut"
    if sites:
        return f"nothing cut: {sites[0].kind}"
    if refusals:
        return f"nothing applied: {refusals[0].kind}"
    return "nothing applied: no product reads both"


def tally_of(count: int, seed: int, pack: int = 20) -> collections.Counter:
    """Draw graphs, require each to be equal, and count what became of them."""
    tally: collections.Counter = collections.Counter()
    generator = torch.Generator().manual_seed(seed)

    def choose(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    for _ in range(count // pack):
        models = [drawn(choose, 1 + choose(9))[0] for _ in range(pack)]
        inputs = [torch.randn(7, width, dtype=torch.double) for width in WIDTHS]
        inputs += [torch.randint(WORDS, (7, HISTORY)), torch.randint(WORDS, (7,))]
        tally.update(swept(models, inputs))
    return tally


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_twin_of_any_graph_is_equal(data):
    model, inputs, sides = drawn(
        lambda count: data.draw(st.integers(0, count - 1)), data.draw(st.integers(1, 9))
    )
    one, given_one, tiled, given_three = requests(inputs, sides)
    twin = reparameterise(model, one, sides).twin
    with torch.no_grad():
        equal(twin(*given_one), model(*one))
        equal(twin(*given_three, request_B=REQUEST_B), model(*tiled))


def test_the_rules_are_exact_on_a_pack_of_graphs():
    assert sum(tally_of(20, seed=1).values()) == 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_rules_are_exact_on_2000_graphs():
    tally = tally_of(2000, seed=0)
    print("\n".join(f"{count:5} {what}" for what, count in tally.most_common()))
    assert tally["cut"] > 500, tally
    assert sum(count for what, count in tally.items() if what.startswith("nothing")) > 100, tally
