"""SASRec: causal, padding unseen, and its loss is the mean cross-entropy over real targets."""

from __future__ import annotations

import pytest
import torch

from feedworks.nn.sasrec import SASRec


@pytest.fixture
def model() -> SASRec:
    torch.manual_seed(0)
    made = SASRec(num_items=9, max_length=6, width=8, num_layers=2, num_heads=2, dropout=0.0).eval()
    torch.nn.init.normal_(made.item.weight)
    return made


def test_the_future_changes_nothing(model):
    before = model(torch.tensor([[1, 2, 3, 4]]))
    after = model(torch.tensor([[1, 2, 8, 0]]))
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_padding_changes_no_score_and_the_last_real_item_is_read(model):
    alone = model.scores(torch.tensor([[1, 2]]))
    together = model.scores(torch.tensor([[1, 2, -1, -1], [3, 4, 5, 6]]))
    torch.testing.assert_close(alone[0], together[0])
    states = model(torch.tensor([[1, 2]]))
    torch.testing.assert_close(alone[0], states[0, 1] @ model.item.weight.T)


def test_the_order_of_the_history_matters(model):
    assert not torch.allclose(model.scores(torch.tensor([[1, 2]])), model.scores(torch.tensor([[2, 1]])))


def test_loss_by_hand(model):
    item, target = torch.tensor([[1, 2, 3], [4, 5, -1]]), torch.tensor([[2, 3, 4], [5, -1, -1]])
    log_p = (model(item) @ model.item.weight.T).log_softmax(dim=-1)
    by_hand = -(log_p[0, 0, 2] + log_p[0, 1, 3] + log_p[0, 2, 4] + log_p[1, 0, 5]) / 4
    torch.testing.assert_close(model.loss(item, target), by_hand)
