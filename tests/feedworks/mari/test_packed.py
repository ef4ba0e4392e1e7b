"""Weights laid out for this processor: the same scores for every model, or else the twin itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feedworks.mari import packed as module
from feedworks.mari.convert import reparameterise
from feedworks.mari.packed import packed
from feedworks.mari.samples import draw, tiled
from feedworks.mari.schema import ModelInput, RankerSchema
from feedworks.mari.twin import Twin

from .asked import SCHEMA, seeded_ranker

WIDE = RankerSchema(
    inputs=(
        ModelInput(name="user", side="user", shape=(24,)),
        ModelInput(name="history", side="user", shape=(5, 16)),
        ModelInput(name="item", side="item", shape=(40,)),
    ),
    outputs=("one", "other"),
)


class Deep(nn.Module):
    """Products of every form: with and without bias, ReLU or another reader, two and three axes, shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24 + 40, 32)
        self.bare = nn.Linear(32, 32, bias=False)
        self.seen = nn.Linear(16, 32)
        self.shared = nn.Linear(32, 32)
        self.narrow = nn.Linear(32, 1)
        self.gate = nn.Linear(40, 32)

    def forward(self, user: Tensor, history: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Score rows."""
        hidden = torch.relu(self.first(torch.cat([user, item], dim=1)))
        before = self.bare(hidden)  # read with and without its ReLU
        seen = torch.relu(self.seen(history)).sum(dim=1)
        twice = torch.relu(self.shared(torch.relu(self.shared(before.relu() + seen))))
        return self.narrow(twice + before)[:, 0], (twice * torch.sigmoid(self.gate(item))).sum(dim=1)


def twin_of(model: nn.Module, schema: RankerSchema) -> Twin:
    return reparameterise(model, tiled(schema, draw(schema, [4])), schema.sides).twin


def equal(one: Any, other: Any) -> None:
    pairs = [(one, other)] if isinstance(one, Tensor) else list(zip(one, other, strict=True))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [[1], [2], [100], [3000], [1, 1], [5, 1, 700]], ids=str)
@pytest.mark.parametrize(("schema", "make"), [(WIDE, Deep), (SCHEMA, seeded_ranker)], ids=["wide", "small"])
def test_it_scores_as_the_model(schema: RankerSchema, make: Any, rows: list[int]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    twin = twin_of(model, schema)
    score = packed(twin, schema)
    assert score is not twin
    sample = draw(schema, rows, seed=3)
    given = {"request_B": sample.request_B} if len(rows) > 1 else {}
    with torch.inference_mode():
        before = [x.clone() for x in sample.inputs]
        for _ in range(2):
            equal(score(*sample.inputs, **given), model(*tiled(schema, sample)))
        assert all(torch.equal(x, y) for x, y in zip(before, sample.inputs, strict=True))


def test_weights_are_laid_out_and_the_twin_is_left_alone() -> None:
    twin = twin_of(Deep().eval(), WIDE)
    state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    codes = [program.graph_module.code for program in twin.programs]
    for several in (False, True):
        graph = module._compiled(twin, twin.graph(several=several)).__self__  # type: ignore[attr-defined]
        calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        assert calls.count(module.packed_linear) >= 3
    assert [program.graph_module.code for program in twin.programs] == codes
    assert all(torch.equal(tensor, state[name]) for name, tensor in twin.state_dict().items())


def test_what_scores_otherwise_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = twin_of(Deep().eval(), WIDE)
    lay_out = module._lay_out

    def wrong(graph: Any, node: Any, weights: dict[str, Tensor], constants: dict[str, Tensor]) -> None:
        lay_out(graph, node, {name: tensor * 1.01 for name, tensor in weights.items()}, constants)

    monkeypatch.setattr(module, "_lay_out", wrong)
    assert packed(twin, WIDE) is twin


def test_without_onednn_the_twin_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = twin_of(Deep().eval(), WIDE)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert packed(twin, WIDE) is twin
