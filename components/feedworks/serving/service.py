"""What every service class does with its framework: its settings, its model's folder, its start.

Three variables of the environment count. FEEDWORKS_MODEL_DIR is the folder of the model; without it the model
comes from the BentoML model store. FEEDWORKS_WORKERS processes answer, each with OMP_NUM_THREADS threads of
torch; both are 1 by default and are read when this module is imported.

    @bentoml.service(**SETTINGS)
    class Service:
        stored_model = stored("paper:latest")

        @bentoml.on_deployment
        @staticmethod
        def check_model() -> None:
            require_model(load)

        def __init__(self) -> None:
            torch.set_num_threads(NUM_THREADS)
            self.model = load(model_folder(self))
            warm_up(self.model)
            settle()
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException
from pydantic import ValidationError

from feedworks.errors import FeedworksError
from feedworks.serving.server import MODEL_DIR

NUM_WORKERS = int(os.environ.get("FEEDWORKS_WORKERS", "1"))
# Two threads a worker of RecoChain answered half as many requests a second on two busy cores (55 for 100).
NUM_THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
SETTINGS: dict[str, Any] = {"workers": NUM_WORKERS, "logging": {"access": {"enabled": False}}}


def stored(tag: str) -> Any:
    """Return what the framework takes for a model of its store, None where the environment names a folder.

    As an attribute of a service class it makes the server, and a bento's build, require the model.

    Args:
        tag: of the model, such as `ocarm:latest`.
    """
    return None if MODEL_DIR in os.environ else bentoml.models.BentoModel(tag)


def model_folder(service: Any) -> Path:
    """Return where the model of a service lies.

    Args:
        service: has an attribute `stored_model`, see `stored`.
    """
    return Path(os.environ.get(MODEL_DIR) or service.stored_model.path)


def require_model(load: Callable[[Path], object]) -> None:
    """End the server with one line if the folder in the environment cannot be loaded.

    For the hook `on_deployment`: a worker that fails at its start is started again for ever.

    Args:
        load: loads a packaged model.

    Raises:
        SystemExit: it raised a FeedworksError.
    """
    if MODEL_DIR not in os.environ:
        return
    folder = os.environ[MODEL_DIR]
    try:
        load(Path(folder))
    except FeedworksError as error:
        raise SystemExit(f"Error: model {folder}: {error}") from None


def settle() -> None:
    """End the start of a service, after its model is loaded and warm.

    From now on the log tells nothing of bad requests, and collections of garbage skip what is loaded: a full
    one with torch takes up to 250 ms.
    """
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_our_fault)
    gc.collect()
    gc.freeze()


def _is_our_fault(record: logging.LogRecord) -> bool:
    """Keep traces of what the framework answers with 4xx, which it logs as errors, out of the log."""
    error = record.exc_info[1] if record.exc_info else None
    client_fault = isinstance(error, BentoMLException) and error.error_code < 500
    return not (client_fault or isinstance(error, ValidationError))
