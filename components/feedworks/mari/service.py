"""MaRI (arXiv 2602.23105): the service, POST /score and POST /raw/score.

The model is the folder in $FEEDWORKS_MODEL_DIR, else `mari:latest` of the BentoML model store.
$FEEDWORKS_WORKERS processes answer, each with $OMP_NUM_THREADS threads of torch; both default to 1.
"""

from __future__ import annotations

import time
from typing import Any

import bentoml
import numpy as np
import torch
from bentoml.exceptions import InvalidArgument, ServiceUnavailable
from pydantic import BaseModel, ConfigDict, Field

from feedworks.mari.request import Request, RequestError
from feedworks.mari.scorer import MAX_ROWS, Scorer
from feedworks.mari.scoring import Scoring, ScoringApp
from feedworks.serving.ahead import Ahead
from feedworks.serving.batching import OverloadedError
from feedworks.serving.limits import App
from feedworks.serving.service import NUM_THREADS, SETTINGS, model_folder, require_model, settle, stored

# Longer calls would keep health checks and the sockets of other clients waiting.
INLINE_WITHIN_S = 0.02


class Query(BaseModel):
    """One user and the candidates to score; GET /schema says which inputs there are."""

    model_config = ConfigDict(extra="forbid")

    user: dict[str, Any] = Field(description="values of each input of the user's side, by name")
    candidates: dict[str, Any] = Field(
        description="of each other input a list with the values of each candidate, by name"
    )


class Scored(BaseModel):
    """Scores in the order of the candidates."""

    scores: list[float] | dict[str, list[float]] = Field(
        description="one per candidate; by output where the model has several"
    )
    model_tag: str


@bentoml.service(**SETTINGS)
class MariService:
    """Scores candidates for a user by a re-parameterised ranking model.

    Machines use POST /raw/score with the bytes of `feedworks.mari.wire`, which takes a tenth of the time.
    """

    stored_model = stored("mari:latest")

    @bentoml.on_deployment
    @staticmethod
    def check_model() -> None:
        """End the server with one line if the model cannot be loaded."""
        require_model(Scorer.load)

    def __init__(self) -> None:
        torch.set_num_threads(NUM_THREADS)
        scorer = Scorer.load(model_folder(self))
        self.scoring = Scoring(scorer, in_thread=_full_call_s(scorer) > INLINE_WITHIN_S)
        settle()

    @bentoml.api
    async def score(self, query: Query, /) -> Scored:
        """Score candidates, in the order in which they came."""
        try:
            request = self.scoring.reader.from_json(query.model_dump_json().encode())
            return Scored(**self.scoring.named(await self.scoring.score(request)))
        except RequestError as error:
            raise InvalidArgument(str(error)) from None
        except OverloadedError as error:
            raise ServiceUnavailable(str(error)) from None

    @bentoml.on_shutdown
    def close(self) -> None:
        """End the model's thread, if it has one."""
        self.scoring.close()


def front(app: App) -> ScoringApp:
    """The paths of `feedworks.mari.scoring` ahead of the framework's, by the service of this process."""
    return ScoringApp(app, lambda: bentoml.get_current_service().scoring)


# The decorator is typed as if it returned the class.
_service: Any = MariService
_service.add_asgi_middleware(Ahead, front=front)


def _full_call_s(scorer: Scorer) -> float:
    """Seconds of the longest call, which also makes the memory of the first requests."""
    rows = min(MAX_ROWS, scorer.schema.max_candidates)
    arrays = tuple(
        np.zeros(each.shape if each.of_user else (rows, *each.shape), each.dtype)
        for each in scorer.schema.inputs
    )
    request = Request(arrays, rows)
    found = []
    for _ in range(3):
        start_s = time.perf_counter()
        scorer.score([request.arrays])
        found.append(time.perf_counter() - start_s)
    return min(found)
