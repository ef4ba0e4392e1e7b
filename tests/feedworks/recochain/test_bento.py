"""From a packaged model to a bento that answers: store, build, serve."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from feedworks import images
from feedworks.recochain.recommender import Recommender
from feedworks.serving.server import running_server

from ..serving import bentos


def test_the_base_image_is_ours() -> None:
    assert bentos.base_image("recochain") in images.ALLOWED


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
        request = urllib.request.Request(f"{address}/recommend", data=b'{"history": [1, 2], "k": 3}')
        request.add_header("Content-Type", "application/json")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            found = json.load(answer)
    assert found["model_tag"] == tag
    assert len(found["items"]) == 3


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
