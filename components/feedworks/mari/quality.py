"""MaRI (arXiv 2602.23105): how well a trained ranker, its twin and two baselines rank the test split.

Shape legend: B rows, F fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from feedworks.baselines.logistic import logistic_scores
from feedworks.contracts.ranking import read_fields
from feedworks.mari.config import EvaluationConfig
from feedworks.mari.data import Rows, read_rows
from feedworks.mari.schema import RankerSchema
from feedworks.mari.training import quality, score_rows
from feedworks.mari.twin import Twin
from feedworks.metrics.ranking import flat

PRIOR_ROWS = 10.0  # of the mean label, beside the rows of an item


class _RowByRow(nn.Module):
    """A twin on rows that each have a user of their own: as many requests as rows."""

    def __init__(self, twin: Twin) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, *inputs: Tensor) -> Any:
        return self.twin(*inputs, request_B=torch.arange(len(inputs[0])))


def measure_quality(
    data_dir: Path, program: ExportedProgram, twin: Twin, schema: RankerSchema, cfg: EvaluationConfig
) -> dict[str, float]:
    """Flat metrics `test/<method>/<metric>`: AUC with its interval, AUC within users, log loss.

    Methods: `original`, `twin`, `logistic` (regression on single ids) and `item_rate` (share of taken among
    the item's training rows).
    """
    train, test = read_rows(data_dir, "train"), read_rows(data_dir, "test")
    sizes = [field.size for field in (*read_fields(data_dir).of_user, *read_fields(data_dir).of_item)]
    scores = {
        "original": score_rows(program.module(), schema, test, cfg.batch_size),
        "twin": score_rows(_RowByRow(twin), schema, test, cfg.batch_size),
        "logistic": logistic_scores(_ids(train), train.label_B.numpy(), sizes, _ids(test)),
        "item_rate": _item_rate(train, test),
    }
    metrics: dict[str, float] = {}
    for method, logit_B in scores.items():
        for name, interval in quality(test, logit_B, num_samples=cfg.bootstrap).items():
            found = flat(f"test/{method}", {name: interval})
            metrics |= found if interval.low < interval.high else {f"test/{method}/{name}": interval.mean}
    return metrics


def _ids(rows: Rows) -> npt.NDArray[np.int64]:
    return np.asarray(torch.cat([rows.user_BU, rows.item_BI], dim=1).numpy())


def _item_rate(train: Rows, test: Rows) -> npt.NDArray[np.float64]:
    """Log-odds of the smoothed share of positives of the item's first field."""
    label, item, asked = train.label_B.numpy(), train.item_BI[:, 0].numpy(), test.item_BI[:, 0].numpy()
    size = int(max(item.max(), asked.max())) + 1
    shown, taken = np.bincount(item, minlength=size), np.bincount(item, label, minlength=size)
    rate = (taken + PRIOR_ROWS * label.mean()) / (shown + PRIOR_ROWS)
    return np.asarray(np.log(rate / (1 - rate))[asked])
