"""RecoChain (arXiv 2604.25787): the same model behind BentoML's own ways to call it, for the bench.

Written as the framework's guide has it: a method per request, and a batchable method behind the framework's
dispatcher. Neither checks requests as the service does.
"""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
import torch

from feedworks.recochain.recommender import Recommender, Request
from feedworks.recochain.service import MAX_BATCH
from feedworks.serving.server import MODEL_DIR
from feedworks.serving.service import NUM_THREADS, SETTINGS

NUM_ITEMS = 10


def _load() -> Recommender:
    torch.set_num_threads(NUM_THREADS)
    return Recommender.load(Path(os.environ[MODEL_DIR]))


@bentoml.service(**SETTINGS)
class Unbatched:
    """One request, one call."""

    def __init__(self) -> None:
        self.recommender = _load()

    @bentoml.api
    def recommend(self, history: list[int], k: int = NUM_ITEMS) -> list[int]:
        """Items for one history."""
        response = self.recommender.recommend([Request(history, k)])[0]
        return [item.item_id for item in response.items]


@bentoml.service(**SETTINGS)
class Batchable:
    """The framework's adaptive batches; a request holds a batch of one history."""

    def __init__(self) -> None:
        self.recommender = _load()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def recommend(self, histories: list[list[int]]) -> list[list[int]]:
        """Items for many histories."""
        responses = self.recommender.recommend([Request(history, NUM_ITEMS) for history in histories])
        return [[item.item_id for item in response.items] for response in responses]
