"""SASRec as a baseline: it learns a ring of items, ranks the whole catalogue and forgets no target."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from feedworks.baselines.sasrec import Validation, _batches, rank_items, train_sasrec
from feedworks.nn.sasrec import SASRec
from feedworks.training.settings import TrainConfig

NUM_ITEMS = 12


def model(max_length: int = 5) -> SASRec:
    torch.manual_seed(0)
    return SASRec(
        num_items=NUM_ITEMS, max_length=max_length, width=16, num_layers=1, num_heads=2, dropout=0.0
    )


def test_it_learns_to_go_round_a_ring(tmp_path):
    histories = [np.arange(start, start + 6) % NUM_ITEMS for start in range(NUM_ITEMS)]
    target = np.array([(h[-1] + 1) % NUM_ITEMS for h in histories])
    config = TrainConfig(epochs=40, batch_size=6, lr=1e-2, accelerator="cpu")
    trained = model()
    result = train_sasrec(trained, histories, Validation(histories, target), config, tmp_path / "state")
    assert result.best_metric == 1.0
    assert rank_items(trained, histories, 3)[:, 0].tolist() == target.tolist()


def test_every_ranking_is_that_of_the_scores_whatever_the_batch():
    histories = [np.arange(length) % NUM_ITEMS for length in (1, 9, 3, 5, 2)]
    network = model().eval()
    ranked = rank_items(network, histories, 100, batch_size=2)
    assert ranked.shape == (5, NUM_ITEMS)
    for row, history in zip(ranked, histories, strict=True):
        score = network.scores(torch.from_numpy(history[-5:])[None])[0]
        assert row.tolist() == score.argsort(descending=True).tolist()


def test_a_batch_holds_the_latest_items_and_each_has_its_successor_as_target():
    config = TrainConfig(epochs=1, batch_size=2)
    histories = [np.array([0, 1, 2, 3, 4]), np.array([7]), np.array([5, 6])]
    (batch,) = _batches(histories, 3, config)(0)
    rows = sorted(zip(batch.item_BT.tolist(), batch.target_BT.tolist(), strict=True))
    assert rows == [([1, 2, 3], [2, 3, 4]), ([5, -1, -1], [6, -1, -1])]


@pytest.mark.parametrize("epoch", [0, 1])
def test_batches_of_an_epoch_are_the_same_each_time(epoch):
    histories = [np.arange(i % 4 + 2) for i in range(20)]
    config = TrainConfig(epochs=1, batch_size=4)
    batches = _batches(histories, 3, config)
    for one, other in zip(batches(epoch), batches(epoch), strict=True):
        assert torch.equal(one.item_BT, other.item_BT)
