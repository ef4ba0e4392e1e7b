"""KSA (arXiv 2604.24432): the service: POST /generate, and OpenAI's completions, chats and models.

The model is the folder in $FEEDWORKS_MODEL_DIR, else `ksa:latest` of the BentoML model store; it goes to the
GPU if there is one. Its package says how many sequences run at once and how long they may be;
$FEEDWORKS_STREAMS and $FEEDWORKS_CONTEXT replace that. A request waits $FEEDWORKS_WAIT seconds (60) for its
turn. $FEEDWORKS_WORKERS processes answer, each with a model and a cache of its own and $OMP_NUM_THREADS
threads of torch; both default to 1.
"""

from __future__ import annotations

import math
import os
from http import HTTPStatus
from pathlib import Path
from typing import Any

import bentoml
import torch
from bentoml.exceptions import BentoMLException

from feedworks.errors import ConfigError
from feedworks.ksa.answering import Answering
from feedworks.ksa.api import Api
from feedworks.ksa.cache import KsaCache
from feedworks.ksa.engine import Engine
from feedworks.ksa.packaging import Loaded, load_package
from feedworks.ksa.protocol import Generated, GenerateRequest, RequestError
from feedworks.ksa.room import CONTEXT, check_room, limits_here
from feedworks.ksa.scheduling import Policy
from feedworks.nn.packed import pack_linears
from feedworks.serving.ahead import Ahead
from feedworks.serving.limits import App
from feedworks.serving.service import (
    NUM_THREADS,
    NUM_WORKERS,
    SETTINGS,
    model_folder,
    require_model,
    settle,
    stored,
)

WAIT = "FEEDWORKS_WAIT"


class _Refused(BentoMLException):
    """A request that the model cannot answer, as the framework's own route tells it."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(str(error))
        self.error_code = HTTPStatus(error.status)


@bentoml.service(**SETTINGS)
class KsaService:
    """Continues texts, for many clients at once; clients for OpenAI's API work with /v1."""

    stored_model = stored("ksa:latest")

    @bentoml.on_deployment
    @staticmethod
    def check_model() -> None:
        """End the server with one line if the model cannot be loaded."""
        require_model(_load_for_a_try)

    def __init__(self) -> None:
        torch.set_num_threads(NUM_THREADS)
        loaded = load_package(model_folder(self), _device())
        self.answering = answering_for(loaded._replace(limits=limits_here(loaded.limits)))
        settle()

    @bentoml.api
    async def generate(self, request: GenerateRequest, /) -> Generated:
        """Continue a prompt; with stream=true as server-sent events."""
        try:
            call = await self.answering.generation(request)
            return Generated(**await self.answering.whole(call))
        except RequestError as error:
            raise _Refused(error) from None

    def __is_alive__(self) -> bool:
        """Whether the model's thread runs, for /livez."""
        return self.answering.engine.alive

    __is_ready__ = __is_alive__

    @bentoml.on_shutdown
    def close(self) -> None:
        """End the model's thread."""
        self.answering.close()


def answering_for(loaded: Loaded) -> Answering:
    """Lay a model out for serving, allocate its cache, warm it up and start its engine."""
    model, limits = loaded.model, loaded.limits
    pack_linears(model)
    cache = KsaCache(
        model.config, limits.max_streams, limits.max_context, dtype=model.dtype, device=model.device
    )
    warm_up(model, cache)
    engine = Engine(model, cache, loaded.vocabulary, max_waiting=limits.max_queue, policy=policy_here())
    return Answering(engine, loaded.vocabulary, loaded.tag, limits, model.config.vocab_size)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_for_a_try(folder: Path) -> None:
    """Load what the server will, and read its settings."""
    loaded = load_package(folder, "cpu")
    limits, most = limits_here(loaded.limits), loaded.model.config.max_position_embeddings
    if limits.max_context > most:
        raise ConfigError(f"{CONTEXT}={limits.max_context}: the model reads {most} tokens at most")
    check_room(loaded.model, limits, _device(), num_workers=NUM_WORKERS)
    policy_here()


def policy_here() -> Policy:
    """Return the scheduler's policy with the patience of the environment.

    Raises:
        ConfigError: it is no number above 0.
    """
    given = os.environ.get(WAIT) or str(Policy().wait_s)
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{WAIT}: expected seconds above 0, got {given!r}")
    return Policy(wait_s=seconds)


def warm_up(model: Any, cache: KsaCache) -> None:
    """Read a prompt into every slot and add a token that ends its chunk."""
    slots = list(range(len(cache.lengths)))
    length = min(cache.capacity - 1, max(1, 2 * model.config.chunk - 1))
    token_BT = torch.zeros(len(slots), length, dtype=torch.int64, device=model.device)
    model.prefill(token_BT, [length] * len(slots), cache, slots)
    model.decode(token_BT[:, 0], cache, slots)
    cache.reset()


def front(app: App) -> Api:
    """The paths of `feedworks.ksa.api` ahead of the framework's, by the service of this process."""
    return Api(app, lambda: bentoml.get_current_service().answering)


# The decorator is typed as if it returned the class.
_service: Any = KsaService
_service.add_asgi_middleware(Ahead, front=front)
