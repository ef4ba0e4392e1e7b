"""What must hold of every twin: its layout, nothing repeated, a second pass that finds nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from feedworks.mari import flops, reparameterise
from feedworks.mari.bench import _ranker
from feedworks.mari.colour import colours
from feedworks.mari.programs import weights_of
from feedworks.mari.samples import draw, export_ranker, tiled
from feedworks.mari.schema import ModelInput, RankerSchema, Side
from feedworks.nn import rankers

FEATURES = rankers.Features(user_sizes=(10,) * 40, item_sizes=(10,) * 3, width=16)
NAMES = ("mlp", "mmoe", "din", "dcn", "ppnet")


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    model, schema = _ranker(request.param, FEATURES)
    program = export_ranker(model, schema)
    twin, report = reparameterise(program, tiled(schema, draw(schema, [5])), schema.sides)
    return request.param, program, schema, twin, report


def rows_of(node):
    value = node.meta.get("val")
    return value.shape[0] if isinstance(value, Tensor) and value.ndim else None


def test_nothing_as_wide_as_the_user_is_repeated_for_the_candidates(case):
    name, _, schema, twin, _ = case
    program = twin.programs[0]
    colour = colours(program.graph, schema.sides, weights_of(program).keys())
    repeated = [
        node.name
        for node in program.graph.nodes
        if node.op == "call_function"
        and colour[node.name].name == "user"
        and not isinstance(rows_of(node), int | type(None))
    ]
    widest = max(
        node.meta["val"].shape[-1]
        for node in program.graph.nodes
        if node.op == "call_function" and not isinstance(rows_of(node), int | type(None))
    )
    if name == "dcn":  # x0 times each cross layer is number by number: there it is needed whole
        assert len(repeated) == 1
    else:
        assert not repeated
        assert widest < 640  # of 40 fields of the user, 16 wide


def test_several_requests_repeat_only_products(case):
    name, _, _, twin, report = case
    program = twin.programs[1]
    outputs = {site.outputs for site in report.sites}
    given = next(node for node in program.graph.nodes if node.name == "request")
    # DIN also gathers the user's keys and which of them count, DCNv2 the user for its cross layers.
    more = {"din": {16, 1}, "dcn": {640}}.get(name, set())
    for node in given.users:
        assert node.meta["val"].shape[-1] in outputs | more, node.format_node()


def test_a_second_pass_finds_nothing(case):
    _, _, schema, twin, report = case
    again, found = reparameterise(twin.programs[0], draw(schema, [5]).inputs, schema.sides)
    assert any(site.cut for site in report.sites)
    assert found.sites == ()
    sample = draw(schema, [7], seed=2)
    with torch.no_grad():
        torch.testing.assert_close(again(*sample.inputs), twin(*sample.inputs), rtol=0, atol=0)


def test_operations_never_grow(case):
    _, program, schema, twin, _ = case
    for rows in (2, 50, 1000):
        sample = draw(schema, [rows])
        before = flops.counted(program, tiled(schema, sample))
        assert flops.counted(twin.programs[0], sample.inputs) < before


class Join(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(width, 6)

    def forward(self, *parts: Tensor) -> Tensor:
        product: Tensor = self.linear(torch.cat(parts, dim=1))
        return product


WIDTHS: tuple[tuple[Side, int], ...] = (("item", 3), ("user", 5), ("cross", 2), ("user", 7), ("item", 4))


def fragments() -> tuple[nn.Module, RankerSchema]:
    inputs = tuple(
        ModelInput(name=f"{side}_{number}", side=side, shape=(width,))
        for number, (side, width) in enumerate(WIDTHS)
    )
    return Join(sum(width for _, width in WIDTHS)).eval(), RankerSchema(inputs=inputs)


@pytest.mark.parametrize(("layout", "products"), [("neat", 2), ("keep", 5)])
@pytest.mark.parametrize("pad_to", [1, 8])
def test_a_product_for_each_side_or_for_each_block(layout, products: int, pad_to: int):
    model, schema = fragments()
    program = export_ranker(model, schema)
    sample, several = draw(schema, [9]), draw(schema, [2, 5])
    twin, report = reparameterise(
        program, tiled(schema, sample), schema.sides, layout=layout, pad_to=pad_to, kernels=False
    )
    assert [(site.user_width, site.other_width) for site in report.sites] == [(12, 9)]
    targets = [str(node.target) for node in twin.programs[0].graph.nodes if node.op == "call_function"]
    assert sum("linear" in target or "addmm" in target for target in targets) == products
    assert all(
        tensor.shape[-1] % pad_to == 0
        for name, tensor in twin.state_dict().items()
        if name.startswith("cut_")
    )
    with torch.no_grad():
        torch.testing.assert_close(twin(*sample.inputs), model(*tiled(schema, sample)))
        found = twin(*several.inputs, request_B=several.request_B)
        torch.testing.assert_close(found, model(*tiled(schema, several)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(twin.merged_state()[name], tensor)


def test_the_neat_layout_gathers_the_columns_of_a_side():
    model, schema = fragments()
    twin, _ = reparameterise(model, tiled(schema, draw(schema, [5])), list(schema.sides.values()))
    weight_ND = model.linear.weight
    user, other = torch.cat([torch.arange(3, 8), torch.arange(10, 17)]), [0, 1, 2, 8, 9, 17, 18, 19, 20]
    cut = [tensor for name, tensor in twin.state_dict().items() if name.startswith("cut_")]
    assert torch.equal(cut[0], weight_ND[:, user])
    assert torch.equal(cut[1], weight_ND[:, other])


@pytest.mark.parametrize("sides", [("item", "item"), ("cross", "item")])
def test_without_columns_of_a_user_nothing_changes(sides):
    inputs = [torch.randn(5, 3), torch.randn(5, 4)]
    model = Rowless().eval()
    twin, report = reparameterise(model, inputs, sides)
    assert not any(site.cut for site in report.sites)
    with torch.no_grad():
        torch.testing.assert_close(twin(*inputs), model(*inputs))


class Rowless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        product: Tensor = self.linear(torch.cat([one, other.expand(one.shape[0], -1)], dim=1))
        return product


def test_a_model_of_the_user_alone_has_nothing_to_rank():
    from feedworks.errors import ModelError

    with pytest.raises(ModelError, match="nothing to rank"):
        reparameterise(Rowless().eval(), [torch.randn(5, 3), torch.randn(5, 4)], ("user", "user"))


def test_the_trained_model_is_not_touched():
    model, schema = fragments()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reparameterise(model, tiled(schema, draw(schema, [5])), list(schema.sides.values()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()
    model(*tiled(schema, draw(schema, [5]))).sum().backward()
