"""Colours of hand-built graphs with known answers, and of random ones against all ancestors of a node."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from feedworks.mari.colour import Colour, colours

from .test_fuzz import WIDTHS, Random

# torch copies its own tree specifications, which it warns of.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated:FutureWarning")
SIDES = {"user": "user", "item": "item", "cross": "cross"}


def graph_of(model: nn.Module, *inputs: Tensor, shapes: tuple | None = None):
    rows = Dim("rows")
    program = export(model.eval(), inputs, dynamic_shapes=shapes or tuple({0: rows} for _ in inputs))
    program = program.run_decompositions({})
    named = [spec.arg.name for spec in program.graph_signature.input_specs]
    return program.graph, set(named) - set(program.graph_signature.user_inputs)


class Named(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, user: Tensor, item: Tensor, cross: Tensor):
        return self.model(user, item, cross)


class Known(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, user: Tensor, item: Tensor, cross: Tensor) -> tuple[Tensor, ...]:
        weight = self.layer.weight.exp()
        ones = item.new_ones(item.shape[0], 2)
        return torch.relu(user) @ weight.t(), torch.tanh(item), item * cross, user + item, ones


def test_every_colour_is_found():
    graph, constants = graph_of(Known(), *(torch.randn(3, 4) for _ in range(3)))
    found = colours(graph, SIDES, constants)
    by_operation = {
        str(node.target).split(".")[1]: found[node.name].name
        for node in graph.nodes
        if node.op == "call_function"
    }
    assert by_operation == {
        "exp": "const", "sym_size": "rows", "new_ones": "item", "relu": "user", "t": "const",
        "matmul": "user", "tanh": "item", "mul": "cross", "add": "mixed",
    }  # fmt: skip
    assert {found[name].name for name in SIDES} == {"user", "item", "cross"}
    assert not any(colour.tiled for colour in found.values())


class Tiles(nn.Module):
    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.cat([user.exp().expand(item.shape[0], -1), item], dim=1)


def test_an_expanded_user_stays_the_user():
    rows = Dim("rows")
    graph, constants = graph_of(Tiles(), torch.randn(1, 2), torch.randn(3, 2), shapes=(None, {0: rows}))
    found = colours(graph, SIDES, constants)
    assert found["exp"] == Colour("user")
    assert found["expand"] == Colour("user", tiled=True)
    assert found["cat"] == Colour("mixed")


def ancestors(node) -> set[str]:
    if isinstance(node.meta.get("val"), torch.SymInt):
        return set()  # how many rows there are says nothing of what is in them
    above = set().union(*(ancestors(parent) for parent in node.all_input_nodes))
    return above | ({node.name} if node.op == "placeholder" else set())


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_have_the_colours_of_all_their_ancestors(seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Random(lambda count: int(torch.randint(count, (), generator=generator)), 6)
    graph, constants = graph_of(Named(model), *(torch.randn(7, width) for width in WIDTHS))
    found = colours(graph, SIDES, constants)
    for node in graph.nodes:
        if node.op != "call_function" or isinstance(node.meta.get("val"), torch.SymInt):
            continue
        sides = {SIDES[name] for name in ancestors(node) - constants}
        expected = sides.pop() if len(sides) == 1 else "mixed" if "user" in sides else "cross"
        assert found[node.name].name == (expected if ancestors(node) - constants else "const")
