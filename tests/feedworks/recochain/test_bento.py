"""From a packaged model to a bento that answers: store, build, serve."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from feedworks import images
from feedworks.recochain.recommender import Recommender
from feedworks.serving.server import free_port, post_json, running_server

from ...containers import engine
from ..serving import bentos


def test_the_base_image_is_ours() -> None:
    assert bentos.base_image("recochain") == images.CPU_SERVE


def test_a_bento_holds_the_stored_model_and_answers(
    packaged_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "bentoml"
    home.mkdir()
    for _ in range(2):  # the second time it is there already
        stored = bentos.store(packaged_model, home)
    tag = Recommender.load(packaged_model, "cpu").tag
    assert stored == f"{tag}\n"

    assert bentos.build("recochain", home) == [tag]

    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    environment = {"BENTOML_HOME": str(home), "PYTHONPATH": bentos.SOURCES}
    with running_server("recochain:test", environment, tmp_path / "log") as address:
        found = post_json(f"{address}/recommend", {"history": [1, 2], "k": 3})
    assert found["model_tag"] == tag
    assert len(found["items"]) == 3


@pytest.mark.docker
def test_an_image_of_a_bento_answers_as_the_model_does(packaged_model: Path, tmp_path: Path) -> None:
    bentos.store(packaged_model, tmp_path)
    bentos.build("recochain", tmp_path)
    tag = f"feedworks/test-bento:{uuid.uuid4().hex}"
    made = bentos.containerize("recochain", tmp_path, tag, BASE_IMAGE=engine.require(images.CPU_SERVE))
    assert made.returncode == 0, made.stderr
    port = free_port()
    try:
        with engine.started(tag, options=("-p", f"127.0.0.1:{port}:3000")) as container:
            body = {"history": [1, 2], "k": 3}
            found = engine.ask(container, f"http://127.0.0.1:{port}/recommend", body)
    finally:
        engine.docker("rmi", "-f", tag)
    model = Recommender.load(packaged_model, "cpu")
    assert found["model_tag"] == model.tag
    assert len(found["items"]) == 3


@pytest.mark.docker
def test_a_base_that_is_not_there_is_told(packaged_model: Path, tmp_path: Path) -> None:
    engine.require(images.CPU_SERVE)
    bentos.store(packaged_model, tmp_path)
    bentos.build("recochain", tmp_path)
    made = bentos.containerize("recochain", tmp_path, "feedworks/test-bento:no", BASE_IMAGE="feedworks/no:1")
    assert made.returncode != 0
    assert "feedworks/no:1" in made.stderr + made.stdout


def test_a_folder_without_a_model_is_not_stored(tmp_path: Path) -> None:
    result = bentos.python("-m", "feedworks.serving.store", tmp_path / "nothing", BENTOML_HOME=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_without_folder_and_stored_model_the_server_says_what_is_missing(tmp_path: Path) -> None:
    target = "feedworks.recochain.service:RecoChainService"
    result = bentos.python("-m", "bentoml", "serve", target, "--port", "1", BENTOML_HOME=str(tmp_path))
    assert result.returncode != 0
    assert "recochain:latest" in result.stderr
