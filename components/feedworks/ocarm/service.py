"""OCARM (arXiv 2604.25839): the service, POST /predict.

The model is the folder in $FEEDWORKS_MODEL_DIR, else `ocarm:latest` of the BentoML model store. Features
come with the request, or from the store at $FEEDWORKS_FEATURE_STORE, packed+redis://127.0.0.1:6379/0 for
example, within $FEEDWORKS_FEATURE_DEADLINE_MS (50). $FEEDWORKS_FEATURE_STORE_OPEN opens it, a function
`module:name` of the address, the model's schema and `timeout_s`: this service knows no feature store itself.
$FEEDWORKS_WORKERS processes answer, each with $OMP_NUM_THREADS threads of torch; both default to 1.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import bentoml
import torch
from bentoml.exceptions import ServiceUnavailable
from pydantic import BaseModel, Field, ValidationError

from feedworks.errors import ConfigError, FeedworksError
from feedworks.features.schema import ServiceSchema
from feedworks.ocarm.answering import DEADLINE_S, Answer, Answering
from feedworks.ocarm.predictor import Predictor
from feedworks.ocarm.request import Query, query_type
from feedworks.serving.ahead import Ahead
from feedworks.serving.batching import OverloadedError
from feedworks.serving.limits import App, JsonLimits
from feedworks.serving.route import JsonRoute
from feedworks.serving.server import MODEL_DIR
from feedworks.serving.service import NUM_THREADS, SETTINGS, model_folder, settle, stored

if TYPE_CHECKING:
    from feedworks.features.reading import FeatureSource

FEATURES = "FEEDWORKS_FEATURE_STORE"
FEATURES_OPEN = "FEEDWORKS_FEATURE_STORE_OPEN"
FEATURES_DEADLINE = "FEEDWORKS_FEATURE_DEADLINE_MS"
OPEN_SOURCE = "feedworks.features.reading:open_source"
DEADLINES_MS = (1, 1000)
MAX_BODY_BYTES = 4 << 20
TIMEOUT_S = 30


class View(BaseModel):
    """The features of one view of one user."""

    state: Literal["fresh", "stale", "missing", "ahead", "given", "incomplete", "unread"]
    age_s: float | None = Field(description="seconds between the stored row and the bid")


class Prediction(BaseModel):
    """The answer about one user; `feedworks.ocarm.answering` lists the reasons."""

    user_id: int
    probability: dict[str, float] = Field(
        description="by horizon; of lt1 the probability of a revisit, else the share of days with one"
    )
    source: Literal["model", "base_rate"]
    degraded: bool = Field(description="whether the model saw less than it could have")
    reasons: list[str] = Field(description="why it is degraded")
    views: dict[str, View]


class Predictions(BaseModel):
    """Answers in the order of the users."""

    users: list[Prediction]
    model_tag: str


@bentoml.service(**SETTINGS, traffic={"timeout": TIMEOUT_S})
class OcarmService:
    """How likely lapsed users stay if they are brought back, from what is known at bid time."""

    stored_model = stored("ocarm:latest")

    @bentoml.on_deployment
    @staticmethod
    def check_model() -> None:
        """End the server with one line if it cannot answer; it would restart workers for ever."""
        try:
            deadline_s()
            if MODEL_DIR in os.environ:
                open_features(Predictor.load(Path(os.environ[MODEL_DIR])).schema)
        except FeedworksError as error:
            raise SystemExit(f"Error: {error}") from None

    def __init__(self) -> None:
        torch.set_num_threads(NUM_THREADS)
        predictor = Predictor.load(model_folder(self))
        self.query_type = query_type(predictor.schema)
        _warm_up_store(predictor.schema)
        self.answering = Answering(predictor, open_features(predictor.schema), deadline_s=deadline_s())
        self._counters = self.answering.counters
        settle()

    @bentoml.api
    async def predict(self, query: Query, /) -> Predictions:
        """Answer about users by their features in the store, or in the request."""
        try:
            return await self.answer(self.query_type.model_validate(query.model_dump()))
        except OverloadedError as error:
            raise ServiceUnavailable(str(error)) from None

    async def answer(self, query: Query) -> Predictions:
        """Answer and count.

        Raises:
            OverloadedError: too many requests are waiting.
        """
        start_s = time.perf_counter()
        try:
            answers = await self.answering.answer(query.users)
        except OverloadedError:
            self._counters.requests.labels("overloaded").inc()
            raise
        self._counters.requests.labels("degraded" if any(a.degraded for a in answers) else "ok").inc()
        self._counters.latency_s.observe(time.perf_counter() - start_s)
        return Predictions.model_construct(
            users=[_prediction(answer) for answer in answers],
            model_tag=self.answering.predictor.tag,
        )

    async def answer_json(self, body: bytes) -> bytes:
        """Answer one request in JSON.

        Raises:
            ValidationError: it cannot be answered.
            OverloadedError: too many requests are waiting.
        """
        try:
            query = self.query_type.model_validate_json(body)
        except ValidationError:
            self._counters.requests.labels("refused").inc()
            raise
        return (await self.answer(query)).model_dump_json().encode()

    @bentoml.on_shutdown
    async def close(self) -> None:
        """End the model's thread and the store's connections."""
        await self.answering.close()


async def answer_json(body: bytes) -> bytes:
    """Answer one request in JSON by the service of this process."""
    answer: bytes = await bentoml.get_current_service().answer_json(body)
    return answer


def front(app: App) -> App:
    """POST /predict ahead of what the framework does to a request."""
    return JsonLimits(JsonRoute(app, path="/predict", answer=answer_json), max_body_bytes=MAX_BODY_BYTES)


# The decorator is typed as if it returned the class.
_service: Any = OcarmService
_service.add_asgi_middleware(Ahead, front=front)


def _prediction(answer: Answer) -> Prediction:
    views = {name: View.model_construct(**view._asdict()) for name, view in answer.views.items()}
    return Prediction.model_construct(**answer._replace(views={})._asdict() | {"views": views})


def open_features(schema: ServiceSchema) -> FeatureSource | None:
    """Open the store that the environment names, None if it names none.

    Args:
        schema: what the model reads.

    Raises:
        ConfigError: nothing opens it, or the deadline is out of range.
    """
    address = os.environ.get(FEATURES, "")
    if not address:
        return None
    module, _, name = os.environ.get(FEATURES_OPEN, OPEN_SOURCE).partition(":")
    try:
        opener = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{FEATURES_OPEN}={module}:{name}: {error}; expected module:function") from None
    # The service gives up first, and says that the store was slow.
    source: FeatureSource = opener(address, schema, timeout_s=2 * deadline_s())
    return source


def _warm_up_store(schema: ServiceSchema) -> None:
    """Read once, in a loop of its own: to import the client library takes longer than a read may take."""

    async def read() -> None:
        source = open_features(schema)
        if source is not None:
            with suppress(Exception):  # a store that is gone now may be back for the first request
                await source.read({view.entity: [0] for view in schema.views}, time.time_ns() // 1000)
            await source.close()

    with ThreadPoolExecutor(max_workers=1) as thread:  # there may be a loop in this one
        thread.submit(asyncio.run, read()).result()


def deadline_s() -> float:
    """Seconds that the store has.

    Raises:
        ConfigError: the environment does not say a number of milliseconds in range.
    """
    text = os.environ.get(FEATURES_DEADLINE, f"{DEADLINE_S * 1e3:g}")
    low, high = DEADLINES_MS
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0
    if not low <= milliseconds <= high:
        raise ConfigError(f"{FEATURES_DEADLINE}={text}: expected {low} to {high} milliseconds")
    return milliseconds / 1e3
