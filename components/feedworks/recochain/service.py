"""RecoChain (arXiv 2604.25787): the service, POST /recommend.

The model is the folder in $FEEDWORKS_MODEL_DIR, else `recochain:latest` of the BentoML model store.
$FEEDWORKS_WORKERS processes answer, each with $OMP_NUM_THREADS threads of torch; both default to 1.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any, Literal

import bentoml
import torch
from bentoml.exceptions import ServiceUnavailable
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from feedworks.recochain.recommender import Recommender, Request, Response
from feedworks.serving.batching import MicroBatcher, OverloadedError
from feedworks.serving.counters import counters
from feedworks.serving.limits import JsonLimits
from feedworks.serving.route import JsonRoute
from feedworks.serving.service import NUM_THREADS, SETTINGS, model_folder, require_model, settle, stored

MAX_HISTORY = 10_000
MAX_VECTORS = 256
MAX_BODY_BYTES = 4 << 20
# On a CPU a request of a batch takes as long from 4 requests on (25 ms, 33 ms alone, at preset small), while
# all of them wait for the longest history and the fullest buckets among them.
MAX_BATCH = 64 if torch.cuda.is_available() else 8
TIMEOUT_S = 30

ItemId = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float32 = Annotated[float, Field(ge=-3.4e38, le=3.4e38, allow_inf_nan=False)]


class Query(BaseModel):
    """Whom to recommend for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    history: Annotated[list[ItemId], FailFast(), Field(max_length=MAX_HISTORY)] = Field(
        description="the user's item ids, oldest first; may be empty"
    )
    k: Annotated[int, Field(ge=1)] = Field(10, description="items wanted, at most the model's beam width")
    vectors: Annotated[
        dict[Annotated[ItemId, Field(strict=False)], Annotated[list[Float32], FailFast()]],
        Field(max_length=MAX_VECTORS),
    ] = Field({}, description="vectors of items in the history that the model does not know, by item id")


class Item(BaseModel):
    """One recommended item."""

    item_id: int
    score: float = Field(description="ranking logit, or the training count under the popularity fallback")
    sid: tuple[int, ...] = Field(description="semantic ID")


class Recommendations(BaseModel):
    """Items, best first."""

    items: list[Item]
    skipped: list[int] = Field(description="ids of the history that the model does not know")
    fallback: Literal["popularity"] | None = Field(description="why the model was not asked, if it was not")
    model_tag: str


@bentoml.service(**SETTINGS, traffic={"timeout": TIMEOUT_S})
class RecoChainService:
    """Top-k recommendation from a user's history of item ids."""

    stored_model = stored("recochain:latest")

    @bentoml.on_deployment
    @staticmethod
    def check_model() -> None:
        """End the server with one line if the model cannot be loaded."""
        require_model(partial(Recommender.load, device="cpu"))

    def __init__(self) -> None:
        torch.set_num_threads(NUM_THREADS)
        self._recommender = Recommender.load(model_folder(self))
        _warm_up(self._recommender)
        self._counters = counters("recochain")
        self._batcher = MicroBatcher(
            self._recommender.recommend, max_batch=MAX_BATCH, observe=self._counters.batch_size.observe
        )
        settle()

    @bentoml.api
    async def recommend(self, query: Query, /) -> Recommendations:
        """Recommend `k` items that continue a history."""
        try:
            return await self.answer(query)
        except OverloadedError as error:
            raise ServiceUnavailable(str(error)) from None

    async def answer(self, query: Query) -> Recommendations:
        """Check what only the loaded model can tell, wait for the batch, count.

        Raises:
            ValidationError: k is beyond the beam, or a vector has another width than the model's.
            OverloadedError: too many requests are waiting.
        """
        start_s = time.perf_counter()
        self._check(query)
        try:
            response = await self._batcher.submit(Request(query.history, query.k, query.vectors))
        except OverloadedError:
            self._counters.requests.labels("overloaded").inc()
            raise
        self._count(response, time.perf_counter() - start_s)
        items = [Item.model_construct(**item._asdict()) for item in response.items]
        return Recommendations.model_construct(
            items=items, skipped=response.skipped, fallback=response.fallback, model_tag=self._recommender.tag
        )

    @bentoml.on_shutdown
    def close(self) -> None:
        """End the model's thread."""
        self._batcher.close()

    def _check(self, query: Query) -> None:
        """What only the loaded model can tell about a request; the error looks like those of `Query`."""
        largest, width = self._recommender.max_k, self._recommender.vector_width
        wrong: list[InitErrorDetails] = []
        if query.k > largest:
            wrong.append(_detail(("k",), f"this model recommends at most {largest} items", query.k))
        for item, vector in query.vectors.items():
            if len(vector) != width:
                wrong.append(_detail(("vectors", item), f"expected {width} numbers", len(vector)))
        if wrong:
            raise ValidationError.from_exception_data("Query", wrong)

    def _count(self, response: Response, seconds: float) -> None:
        self._counters.requests.labels("fallback" if response.fallback else "ok").inc()
        self._counters.skipped_ids.inc(len(response.skipped))
        self._counters.latency_s.observe(seconds)


async def answer_json(body: bytes) -> bytes:
    """Answer one request in JSON by the service of this process."""
    recommendations: Recommendations = await bentoml.get_current_service().answer(
        Query.model_validate_json(body)
    )
    return recommendations.model_dump_json().encode()


# The decorator is typed as if it returned the class.
_service: Any = RecoChainService
_service.add_asgi_middleware(JsonLimits, max_body_bytes=MAX_BODY_BYTES)
_service.add_asgi_middleware(JsonRoute, path="/recommend", answer=answer_json)


def _detail(location: tuple[str | int, ...], message: str, value: int) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError(
            "out_of_range", "{message}, got {value}", {"message": message, "value": value}
        ),
        loc=location,
        input=value,
    )


def _warm_up(recommender: Recommender) -> None:
    popular = recommender.recommend([Request([], recommender.max_k)])[0].items
    request = Request([item.item_id for item in popular], recommender.max_k)
    for size in (1, 2, MAX_BATCH):
        recommender.recommend([request] * size)
