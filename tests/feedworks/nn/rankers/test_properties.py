"""What training needs of the rankers, and that they export with any number of rows."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.export import Dim, export

from feedworks.nn.rankers import MLP, Features, JoinedEmbedding, PPNet, Tower
from feedworks.nn.rankers.ppnet import GateUnit

from .samples import FEATURES, NAMES, NUMBERED, inputs, ranker, rankers


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_parameter(name):
    model = ranker(name, NUMBERED).train()
    model(**inputs(name, NUMBERED, rows=200)).square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_one_batch_by_heart(name):
    torch.manual_seed(0)
    model = rankers()[name].train()
    given = inputs(name, rows=32)
    pair = given["user"][:, 0] * 7 + given["item"][:, 0]
    label = torch.randint(2, (35,), generator=torch.Generator().manual_seed(1)).float()[pair]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        logits = model(**given)
        target = label.unsqueeze(-1).expand_as(logits) if logits.ndim == 2 else label
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        logits = model(**given)
    assert (
        (logits > 0).float() == (label.unsqueeze(-1) if logits.ndim == 2 else label)
    ).float().mean() > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_it_exports_with_any_number_of_rows(name):
    model, given = ranker(name), inputs(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.* is deprecated", FutureWarning)
        rows = {key: {0: Dim("rows")} for key in given}
        program = export(model, (), given, dynamic_shapes=rows).module()
    for count in (1, 4, 100):
        other = {key: value[:1].expand(count, -1) for key, value in given.items()}
        torch.testing.assert_close(program(**other), model(**other), rtol=1e-12, atol=1e-12)


def test_fields_do_not_share_rows_of_the_table():
    embedding = JoinedEmbedding(Features(user_sizes=(2, 3), item_sizes=(4,), width=1))
    embedding.table.weight.data = torch.arange(9.0).unsqueeze(1)
    assert embedding(torch.tensor([[1, 2]]), torch.tensor([[3]])).tolist() == [[1, 4, 8]]
    assert "user_start" not in embedding.state_dict()  # made from the sizes, not learned


def test_rows_that_training_never_meets_start_near_nothing():
    assert JoinedEmbedding(FEATURES).table.weight.abs().max() < 1e-3


def test_a_gate_gives_its_main_input_no_gradient_and_starts_around_one():
    torch.manual_seed(0)
    gate = GateUnit(6, 16, 5)
    prior, x = torch.randn(40, 2, requires_grad=True), torch.randn(40, 4, requires_grad=True)
    factors = gate(prior, x)
    factors.sum().backward()
    assert x.grad is None
    assert prior.grad.abs().sum() > 0
    assert ((factors > 0) & (factors < 2)).all()
    assert factors.mean().item() == pytest.approx(1, abs=0.2)


def test_ppnet_without_what_its_gates_say_is_the_mlp():
    torch.manual_seed(0)
    tower = Tower(hidden=(8, 6))
    plain, gated = MLP(FEATURES, tower), PPNet(FEATURES, tower)
    for gate in gated.gates:
        torch.nn.init.zeros_(gate.second.weight)
        torch.nn.init.zeros_(gate.second.bias)  # 2 * sigmoid(0) = 1
    plain.embedding, plain.dense.layers, plain.dense.last = gated.embedding, gated.layers, gated.last
    given = inputs("mlp")
    torch.testing.assert_close(plain(**given), gated(**given))


def test_din_does_not_see_the_order_of_the_history_nor_its_empty_places():
    model, given = ranker("din"), inputs("din")
    longer = torch.cat([torch.zeros_like(given["history"]), given["history"].flip(1)], dim=1)
    torch.testing.assert_close(model(**given), model(**(given | {"history": longer})))


def test_a_tower_without_layers_is_one_product():
    model = MLP(FEATURES, Tower(hidden=()))
    assert [name for name, _ in model.named_parameters()] == [
        "embedding.table.weight",
        "dense.last.weight",
        "dense.last.bias",
    ]
