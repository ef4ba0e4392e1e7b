"""What all services share: where the model is, how a start fails, what the log keeps to itself."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from bentoml.exceptions import BentoMLException, InvalidArgument, ServiceUnavailable
from pydantic import BaseModel, ValidationError

from feedworks.errors import ModelError
from feedworks.serving.service import model_folder, require_model, settle, stored

LOGGER = logging.getLogger("bentoml._internal.server.http_app")


class Number(BaseModel):
    value: int


@pytest.fixture
def settled() -> Iterator[None]:
    before = list(LOGGER.filters)
    settle()
    yield
    LOGGER.filters[:] = before
    gc.unfreeze()


# BentoML's own import.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_folder_in_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    of_store = SimpleNamespace(stored_model=SimpleNamespace(path="/of/store"))
    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    assert str(stored("paper:latest").tag) == "paper:latest"
    assert model_folder(of_store) == Path("/of/store")
    monkeypatch.setenv("FEEDWORKS_MODEL_DIR", "/of/mine")
    assert stored("paper:latest") is None
    assert model_folder(SimpleNamespace()) == Path("/of/mine")  # a store without the model is not asked


def test_a_model_that_cannot_be_loaded_ends_the_server_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(folder: Path) -> None:
        raise ModelError(f"{folder} is empty")

    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    require_model(load)  # the model comes from the store, which the framework asks itself
    monkeypatch.setenv("FEEDWORKS_MODEL_DIR", "/of/mine")
    with pytest.raises(SystemExit, match=r"^Error: model /of/mine: /of/mine is empty$"):
        require_model(load)
    require_model(Path)


def invalid() -> Exception:
    with pytest.raises(ValidationError) as found:
        Number.model_validate({"value": "x"})
    return found.value


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (InvalidArgument("k"), False),
        (invalid(), False),
        (ServiceUnavailable("full"), True),
        (BentoMLException("broken"), True),
        (RuntimeError("broken"), True),
    ],
)
@pytest.mark.usefixtures("settled")
def test_the_log_tells_of_what_is_our_fault(
    caplog: pytest.LogCaptureFixture, error: Exception, is_kept: bool
) -> None:
    try:
        raise error
    except Exception:
        LOGGER.error("Exception on /", exc_info=sys.exc_info())
    LOGGER.error("without an exception")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["Exception on /"] * is_kept + ["without an exception"]


@pytest.mark.usefixtures("settled")
def test_what_is_loaded_is_not_collected_again() -> None:
    assert gc.get_freeze_count() > 0
