"""A product that stays whole says why, with the operation in the way and its node."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from feedworks.mari.convert import _Planner
from feedworks.mari.programs import export_rows
from feedworks.mari.sweep import Options

from .test_convert import dense
from .test_rules import OfTwo

SIDES = ("user", "item")


def planned(function, *layers: nn.Module) -> _Planner:
    user, item = (x.float() for x in dense(5, 3))
    model = OfTwo(function, *layers).eval()
    program, named = export_rows(model, [user[:1].expand(7, -1), item], SIDES)
    planner = _Planner(program, named, Options())
    planner.plan([user[:1], item])
    return planner


def joined(user, item):
    return torch.cat([user, item], dim=1)


CASES = {
    "a non-linearity over sums of both": (
        lambda one, two, u, i: two(torch.relu(one(joined(u, i)))),
        "non-linearity",
        "after a non-linearity over numbers of user and candidate together (relu)",
    ),
    "a softmax over columns of both": (
        lambda one, two, u, i: two(joined(u, i).softmax(dim=-1)[:, :4]),
        "columns",
        "columns of user and candidate meet in softmax over the columns (softmax)",
    ),
    "user times candidate": (
        lambda one, two, u, i: two(u[:, :4] * F.pad(i, (0, 1))),
        "multiplication",
        "after numbers of user and candidate were multiplied (mul",
    ),
    "user or candidate": (
        lambda one, two, u, i: two(torch.maximum(u[:, :4], F.pad(i, (0, 1)))),
        "non-linearity",
        "after numbers of user and candidate were compared (maximum)",
    ),
    "a mean over the rows": (
        lambda one, two, u, i: two(joined(u, i).tanh().mean(dim=0, keepdim=True)[:, :4].expand(7, -1) + 0),
        "rows",
        "depends on several rows (mean over the rows at mean)",
    ),
    "the user's rows sorted": (
        lambda one, two, u, i: one(torch.cat([u.sort(dim=-1)[0].roll(1, 1), i], dim=1)),
        "no rule",
        "no rule keeps sort at one row per request (sort)",
    ),
    "a weight of the inputs": (
        lambda one, two, u, i: F.linear(joined(u, i), one.weight * i.mean()),
        "weight",
        "its weight is computed from the inputs",
    ),
    "two factors of the inputs": (
        lambda one, two, u, i: torch.bmm(*(one(joined(u, i)).relu().unsqueeze(axis) for axis in (1, 2))),
        "weight",
        "both factors are computed from the inputs",
    ),
    "a sum that is as wide as the whole": (
        lambda one, two, u, i: two(one(joined(u, i))),
        "cost",
        "reads sums of numbers of user and candidate: cut by side, 4 columns would be multiplied per "
        "candidate instead of 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_reason(name):
    function, kind, said = CASES[name]
    refusals = planned(function, nn.Linear(8, 4), nn.Linear(4, 2)).refusals
    assert [refusal.kind for refusal in refusals] == [kind]
    assert refusals[0].reason.startswith(said)


def test_attention_of_both_and_what_needs_no_reason():
    def model(one, two, u, i):
        keys = torch.stack([u, u * 2], dim=1)
        query = F.pad(i, (0, 2)).unsqueeze(1)
        out = F.scaled_dot_product_attention(query, keys, keys).squeeze(1)
        return one(torch.cat([out, i], dim=1)) + one(torch.cat([i, F.pad(i, (0, 2))], dim=1))

    planner = planned(model, nn.Linear(8, 4), nn.Linear(4, 2))
    (refusal,) = planner.refusals
    assert refusal.kind == "attention"
    assert refusal.reason == "after attention between user and candidate (scaled_dot_product_attention)"
    assert [site.kind for site in planner.sites] == ["attention"]


def test_a_product_that_was_cut_is_not_refused_and_no_node_is_named_that_is_not_in_the_graph():
    def model(one, two, u, i):
        x = one(joined(u, i))
        column = torch.tanh(x.unsqueeze(2) * 2)
        return two(column.squeeze(2)) + two.weight.mean() * one(joined(u, i))[:, :2]

    planner = planned(model, nn.Linear(8, 4), nn.Linear(4, 2))
    names = {node.name for node in planner._program.graph.nodes}
    assert {site.node for site in planner.sites}.isdisjoint(refusal.node for refusal in planner.refusals)
    assert {site.node for site in planner.sites} <= names
    assert {refusal.at for refusal in planner.refusals} | {r.node for r in planner.refusals} <= names
