"""What models of others do that ours do not: the twin is equal there too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from feedworks.mari.convert import reparameterise
from feedworks.mari.outside import require_scores
from feedworks.mari.samples import export_ranker
from feedworks.mari.schema import RankerSchema

from . import theirs
from .test_convert import dense, twin_of
from .test_rules import OfThree, OfTwo, kinds


def _begins_at_one_number(linear, product, user, item):
    return torch.relu(product(item) + linear(user))


def _begins_at_one_number_in_other_words(linear, product, user, item):
    return torch.addmm(linear(user), item, product.weight.t())


@pytest.mark.parametrize("function", [_begins_at_one_number, _begins_at_one_number_in_other_words])
def test_one_number_of_the_user_is_added_to_all_outputs(function):
    twin_of(OfTwo(function, nn.Linear(5, 1), nn.Linear(3, 8, bias=False)), dense(5, 3), ("user", "item"))


def _sum(first, second, last, user, item):
    return first(user).double() + second(item)


def _joined(first, second, last, user, item):
    joined = torch.cat([first(user).bfloat16().relu(), second(item).double(), item], dim=-1)
    return nn.functional.linear(joined, last.weight.double())


def _stacked(first, second, last, user, item):
    both = torch.cat([first(user).half()[:, None], second(item)[:, None]], dim=1)
    return torch.sigmoid(both).sum(dim=1)


@pytest.mark.parametrize("function", [_sum, _joined, _stacked])
def test_numbers_of_several_types(function):
    model = OfTwo(function, nn.Linear(5, 8), nn.Linear(3, 8, bias=False), nn.Linear(19, 4)).eval()
    user, item = torch.randn(1, 5), torch.randn(7, 3)
    with torch.no_grad():
        wanted = model(user.expand(7, -1), item)
        twin, _ = reparameterise(model, (user.expand(7, -1), item), ("user", "item"))
        torch.testing.assert_close(twin(user, item), wanted, rtol=1e-6, atol=1e-6)


def _larger(first, second, last, user, item):
    return last(torch.cat([torch.max(first(user), second(item)), item, torch.min(user, user), item], dim=-1))


def _rows_in_another_order(first, second, last, user, item):
    both = torch.cat([user[:, None].expand(-1, 3, -1), torch.stack([item, item * 2, item * 3], 1)], -1)
    return second((both.flatten(0, 1)[:, 5:] + 1).view(3, -1, 3).sum(0))


@pytest.mark.parametrize("function", [_larger, _rows_in_another_order])
def test_one_request_of_what_has_no_rule(function):
    model = OfTwo(function, nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(19, 4)).eval()
    user, item = torch.randn(1, 5), torch.randn(7, 3)
    with torch.no_grad():
        twin, _ = reparameterise(model, (user.expand(7, -1), item), ("user", "item"))
        torch.testing.assert_close(twin(user, item), model(user.expand(7, -1), item))


def _scaled(first, user, item, given):
    return first(torch.cat([user, item], dim=-1) * given)


def _shifted(first, user, item, given):
    return first(torch.cat([user, item], dim=-1) + given)


def _normed(first, user, item, given):
    both = nn.functional.layer_norm(torch.cat([user, item], dim=-1), (8,), given)
    return first(both)


def _weighed(first, user, item, given):
    return nn.functional.linear(torch.cat([user, item], dim=-1), given.expand(4, -1))


@pytest.mark.parametrize("function", [_scaled, _shifted, _normed, _weighed])
def test_a_constant_that_is_given_anew_is_in_no_weight(function):
    model, (user, item, given) = OfThree(function, nn.Linear(8, 4)).double(), dense(5, 3, 8)
    inputs = (user[:1].expand(7, -1), item, given[0])
    twin, report = reparameterise(model.eval(), inputs, ("user", "item", "const"))
    assert kinds(report) == ["linear"]
    for each in given:
        with torch.no_grad():
            found, wanted = twin(user[:1], item, each), model(inputs[0], item, each)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def _with_nothing_between(norm, first, user, item):
    return first(norm(torch.cat([user, item[:, :0], item], dim=-1)))


def _by_zero(norm, first, user, item):
    return first(norm(torch.cat([user, item], dim=-1).abs() / 0.0)).nan_to_num()


@pytest.mark.parametrize("function", [_with_nothing_between, _by_zero])
def test_what_a_person_would_not_write(function):
    twin_of(OfTwo(function, nn.LayerNorm(8), nn.Linear(8, 4)), dense(5, 3), ("user", "item"))


def test_a_model_may_drop_the_axis_of_one_row():
    schema = RankerSchema.model_validate(theirs.SIDES)
    require_scores(export_ranker(theirs.Squeezes().eval(), schema), schema, "theirs")
