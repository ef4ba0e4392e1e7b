"""Train SASRec on histories and rank with it.

Shape legend: B rows, T positions, U users, K places of a ranked list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feedworks.metrics import ranking
from feedworks.nn.sasrec import PAD, SASRec
from feedworks.training.bucketing import length_batches, pad_right
from feedworks.training.loop import FitResult, fit
from feedworks.training.seed import numpy_generator
from feedworks.training.settings import TrainConfig

IntArray = npt.NDArray[np.int64]


class NextItemBatch(NamedTuple):
    """Histories and, shifted by one, their targets; -1 pads on the right."""

    item_BT: Tensor
    target_BT: Tensor


class Validation(NamedTuple):
    """Held-out targets that choose the best epoch."""

    histories: Sequence[IntArray]
    target_U: IntArray


def train_sasrec(
    model: SASRec,
    histories: Sequence[IntArray],
    validation: Validation,
    config: TrainConfig,
    state_dir: Path,
) -> FitResult:
    """Train with the full softmax at every position and keep the epoch of the best NDCG@10."""

    def evaluate(module: SASRec, epoch: int) -> dict[str, float]:
        ranked = rank_items(module, validation.histories, 10)
        rank_U = ranking.ranks_of_targets(ranked, validation.target_U)
        return {"valid/ndcg@10": float(ranking.ndcg(rank_U, 10).mean())}

    def loss(module: SASRec, batch: NextItemBatch) -> dict[str, Tensor]:
        weight = (batch.target_BT != PAD).sum()
        return {"loss": module.loss(batch.item_BT, batch.target_BT), "weight": weight}

    return fit(
        model,
        batches=_batches(histories, model.max_length, config),
        num_batches=None,
        loss=loss,
        config=config,
        state_dir=state_dir,
        evaluate=evaluate,
    )


@torch.no_grad()
def rank_items(model: SASRec, histories: Sequence[IntArray], k: int, batch_size: int = 256) -> IntArray:
    """Rank the whole catalogue for each history and return the best `k`."""
    device = model.item.weight.device
    k = min(k, model.item.num_embeddings)
    ranked = np.empty((len(histories), k), dtype=np.int64)
    lengths = [min(len(h), model.max_length) for h in histories]
    for rows in length_batches(lengths, batch_size):
        item_BT = torch.from_numpy(pad_right([histories[i][-model.max_length :] for i in rows]))
        ranked[rows] = model.scores(item_BT.to(device)).topk(k, dim=1).indices.cpu().numpy()
    return ranked


def _batches(
    histories: Sequence[IntArray], max_length: int, config: TrainConfig
) -> Callable[[int], list[NextItemBatch]]:
    kept = [h[-max_length - 1 :] for h in histories if len(h) > 1]
    lengths = [len(h) - 1 for h in kept]

    def batches(epoch: int) -> list[NextItemBatch]:
        rng = numpy_generator(config.seed, "sasrec", epoch)
        return [
            NextItemBatch(
                torch.from_numpy(pad_right([kept[i][:-1] for i in rows])),
                torch.from_numpy(pad_right([kept[i][1:] for i in rows])),
            )
            for rows in length_batches(lengths, config.batch_size, rng)
        ]

    return batches
