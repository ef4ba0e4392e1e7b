"""MaRI (arXiv 2602.23105): the same ranker behind BentoML's own ways to call it, for the bench.

Written as the framework's guide has it, and as the model was trained: a row of numbers for each candidate,
the user's in all of them. None checks requests as the service does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import torch
from bentoml.validators import DType, Shape

from feedworks.mari.serve_bench import WIDTH, Ranker, load_plain
from feedworks.serving.server import MODEL_DIR
from feedworks.serving.service import NUM_THREADS, SETTINGS

Rows = Annotated[np.ndarray, Shape((-1, WIDTH)), DType("float32")]


def _load() -> Ranker:
    torch.set_num_threads(NUM_THREADS)
    return load_plain(Path(os.environ[MODEL_DIR]))


@bentoml.service(**SETTINGS)
class Lists:
    """A list of rows in, a list of scores out."""

    def __init__(self) -> None:
        self.model = _load()

    @bentoml.api
    def score(self, rows: list[list[float]]) -> list[float]:
        """Scores of rows of `WIDTH` numbers."""
        with torch.inference_mode():
            return self.model.score_rows(torch.tensor(rows)).tolist()


@bentoml.service(**SETTINGS)
class Arrays:
    """The same by the framework's array type."""

    def __init__(self) -> None:
        self.model = _load()

    @bentoml.api
    def score(self, rows: Rows) -> np.ndarray:
        """Scores of rows of `WIDTH` numbers."""
        with torch.inference_mode():
            return self.model.score_rows(torch.from_numpy(rows)).numpy()


@bentoml.service(**SETTINGS)
class Tiling:
    """The user's numbers once; the service repeats them. The shortest body that JSON allows."""

    def __init__(self) -> None:
        self.model = _load()

    @bentoml.api
    def score(self, user: list[float], item: list[list[float]]) -> list[float]:
        """Scores of candidates for one user."""
        with torch.inference_mode():
            item_BI = torch.tensor(item)
            user_BU = torch.tensor(user).expand(len(item_BI), -1)
            scores: list[float] = self.model(user_BU, item_BI).tolist()
            return scores
