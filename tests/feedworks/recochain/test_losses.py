"""The losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from feedworks.recochain.losses import generation_loss, item_loss, rank_loss


def test_generation_loss_adds_levels_and_averages_positions():
    level_0 = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])  # p = 1/2, 1/2 and 3/4, 1/4
    level_1 = torch.tensor([[0.0, math.log(9)], [0.0, 0.0]])  # p = 1/10, 9/10 and 1/2, 1/2
    code_PL = torch.tensor([[0, 1], [1, 0]])
    by_hand = -(math.log(1 / 2) + math.log(9 / 10) + math.log(1 / 4) + math.log(1 / 2)) / 2
    assert generation_loss([level_0, level_1], code_PL).item() == pytest.approx(by_hand)


def test_item_loss_over_all_items_is_the_cross_entropy():
    torch.manual_seed(0)
    logits, target = torch.randn(5, 12, dtype=torch.double), torch.tensor([0, 3, 3, 11, 7])
    own = logits[torch.arange(5), target]
    other = logits.scatter(1, target[:, None], -torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(item_loss(own, other, 12), expected)


def test_sampled_item_loss_has_the_partition_function_right_in_expectation():
    torch.manual_seed(0)
    logits, draws = torch.randn(12, dtype=torch.double), 200_000
    item = torch.randint(12, (draws,))
    other = logits[item].masked_fill(item == 4, -torch.inf)
    expected = torch.nn.functional.cross_entropy(logits[None], torch.tensor([4]))
    assert item_loss(logits[4:5], other[None], 12).item() == pytest.approx(expected.item(), rel=1e-2)


def test_a_lone_item_costs_nothing():
    own = torch.tensor([2.0], requires_grad=True)
    loss = item_loss(own, torch.full((1, 1), -torch.inf), 1)
    loss.backward()
    assert loss == 0
    assert own.grad == 0


def test_bce_takes_every_real_candidate_on_its_own():
    logits = torch.tensor([[math.log(3), 0.0, 50.0], [0.0, math.log(4), -math.log(4)]])
    present = torch.tensor([[True, True, False], [True, True, True]])
    # Positives 3/4 and 1/2; negatives 1/2, 4/5 and 1/5.
    by_hand = -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 2) + math.log(1 / 5) + math.log(4 / 5)) / 5
    assert rank_loss(logits, present, "bce").item() == pytest.approx(by_hand)


def test_listwise_is_a_softmax_over_the_real_candidates_of_a_row():
    logits = torch.tensor([[math.log(3), 0.0, 50.0], [0.0, math.log(2), 0.0]])
    present = torch.tensor([[True, True, False], [True, True, True]])
    by_hand = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert rank_loss(logits, present, "listwise").item() == pytest.approx(by_hand)


@pytest.mark.parametrize("kind", ["bce", "listwise"])
def test_absent_candidates_get_no_gradient(kind):
    logits = torch.tensor([[0.5, -0.5, 2.0]], requires_grad=True)
    rank_loss(logits, torch.tensor([[True, True, False]]), kind).backward()
    assert logits.grad[0, 2] == 0
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected bce or listwise"):
        rank_loss(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), "hinge")
