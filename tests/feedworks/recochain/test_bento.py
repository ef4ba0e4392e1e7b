"""From a packaged model to a bento that answers: store, build, serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from feedworks import images
from feedworks.recochain.recommender import Recommender
from feedworks.serving.server import running_server

ROOT = Path(__file__).resolve().parents[3]
SOURCES = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
BENTOFILE = ROOT / "containers" / "bento" / "recochain.yaml"


def python(*words: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "FEEDWORKS_MODEL_DIR"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": SOURCES, "BENTOML_DO_NOT_TRACK": "True", **extra},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_the_base_image_is_ours() -> None:
    assert yaml.safe_load(BENTOFILE.read_text())["docker"]["base_image"] in images.ALLOWED


def test_a_bento_holds_the_stored_model_and_answers(
    packaged_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "bentoml"
    home.mkdir()
    for _ in range(2):  # the second time it is there already
        stored = python("-m", "feedworks.serving.store", packaged_model, BENTOML_HOME=str(home))
        assert stored.returncode == 0, stored.stderr
    tag = Recommender.load(packaged_model, "cpu").tag
    assert stored.stdout == f"{tag}\n"

    words = ["-m", "bentoml", "build", "-f", BENTOFILE, ROOT, "--version", "test", "-o", "tag"]
    built = python(*words, BENTOML_HOME=str(home))
    assert built.returncode == 0, built.stderr
    bento = home / "bentos" / "recochain" / "test"
    assert [model["tag"] for model in yaml.safe_load((bento / "bento.yaml").read_text())["models"]] == [tag]

    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    environment = {"BENTOML_HOME": str(home), "PYTHONPATH": SOURCES}
    with running_server("recochain:test", environment, tmp_path / "log") as address:
        request = urllib.request.Request(f"{address}/recommend", data=b'{"history": [1, 2], "k": 3}')
        request.add_header("Content-Type", "application/json")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            found = json.load(answer)
    assert found["model_tag"] == tag
    assert len(found["items"]) == 3


def test_a_folder_without_a_model_is_not_stored(tmp_path: Path) -> None:
    result = python("-m", "feedworks.serving.store", tmp_path / "nothing", BENTOML_HOME=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_without_folder_and_stored_model_the_server_says_what_is_missing(tmp_path: Path) -> None:
    target = "feedworks.recochain.service:RecoChainService"
    result = python("-m", "bentoml", "serve", target, "--port", "1", BENTOML_HOME=str(tmp_path))
    assert result.returncode != 0
    assert "recochain:latest" in result.stderr
