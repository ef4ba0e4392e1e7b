"""MaRI (arXiv 2602.23105): training of the ranker that is converted. The method itself changes nothing here.

Shape legend: B rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedworks.mari.data import Rows, shuffled
from feedworks.mari.schema import RankerSchema
from feedworks.metrics import classification
from feedworks.metrics.ranking import Interval
from feedworks.training.loop import FitResult, fit
from feedworks.training.settings import TrainConfig

FloatArray = npt.NDArray[np.float64]
MONITOR = "valid/auc"
EVALUATION_ROWS = 8192


def train_ranker(
    model: nn.Module,
    schema: RankerSchema,
    train: Rows,
    valid: Rows,
    config: TrainConfig,
    state_dir: Path,
    *,
    embedding_l2: float = 0.0,
) -> FitResult:
    """Train with binary cross-entropy; the model ends in eval mode, with the best weights by AUC on `valid`.

    Args:
        model: a ranker of `feedworks.nn.rankers` with one logit a row; trained in place.
        schema: its inputs.
        train: rows to learn from.
        valid: rows that choose the epoch, and end the run early by `config.patience`.
        config: how to train.
        state_dir: the state of the run, for exact resume.
        embedding_l2: adds `embedding_l2 / 2 * sum of squares of the embedding table` to the loss of a batch,
            as FuxiCTR's `embedding_regularizer` does.

    Raises:
        ConfigError: `state_dir` holds another run.
        ModelError: training broke down.
    """

    def loss(module: Any, batch: Rows) -> dict[str, Tensor]:
        logit_B = module(*batch.inputs(schema))
        entropy = F.binary_cross_entropy_with_logits(logit_B, batch.label_B)
        table: Tensor = module.embedding.table.weight
        return {"loss": entropy + embedding_l2 / 2 * table.square().sum(), "entropy": entropy}

    def evaluate(module: Any, epoch: int) -> dict[str, float]:
        logit_B = score_rows(module, schema, valid)
        label_B = valid.label_B.numpy()
        return {
            MONITOR: classification.auc(label_B, logit_B),
            "valid/log_loss": classification.log_loss(label_B, logit_B),
        }

    return fit(
        model,
        batches=shuffled(train, config.batch_size, config.seed),
        num_batches=None,
        loss=loss,
        config=config,
        state_dir=state_dir,
        evaluate=evaluate,
        monitor=MONITOR,
    )


@torch.no_grad()
def score_rows(model: Any, schema: RankerSchema, rows: Rows, batch_size: int = EVALUATION_ROWS) -> FloatArray:
    """Logits `(B,)` of a model in eval mode, or of an exported one, on the model's device."""
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    parts = []
    for start in range(0, rows.num_rows, batch_size):
        inputs = rows.chosen(slice(start, start + batch_size)).inputs(schema)
        parts.append(model(*(tensor.to(device) for tensor in inputs)).double().cpu())
    return np.asarray(torch.cat(parts).numpy())


def quality(rows: Rows, logit_B: npt.ArrayLike, *, num_samples: int = 1000) -> dict[str, Interval]:
    """AUC with its bootstrap interval, AUC within users, and log loss, which have none.

    AUC within users is left out where no user has both labels; a user is the first field of the user's side.
    """
    label_B = rows.label_B.numpy()
    found = {"auc": classification.auc_interval(label_B, logit_B, num_samples=num_samples)}
    loss = classification.log_loss(label_B, logit_B)
    found["log_loss"] = Interval(loss, loss, loss)
    try:
        within, _ = classification.grouped_auc(label_B, logit_B, rows.user_BU[:, 0].numpy())
    except ValueError:
        return found
    return found | {"user_auc": Interval(within, within, within)}
