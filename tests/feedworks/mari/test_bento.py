"""From a packaged twin to a bento that answers: store, build, serve."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from feedworks import images
from feedworks.serving.server import post_json, running_server
from feedworks.storage import read_json

ROOT = Path(__file__).resolve().parents[3]
SOURCES = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
BENTOFILE = ROOT / "containers" / "bento" / "mari.yaml"


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


def test_a_bento_holds_the_stored_twin_and_answers(
    outside_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "bentoml"
    home.mkdir()
    for _ in range(2):  # the second time it is there already
        stored = python("-m", "feedworks.serving.store", outside_run / "model", BENTOML_HOME=str(home))
        assert stored.returncode == 0, stored.stderr
    tag = read_json(outside_run / "model" / "package.json")["tag"]
    assert stored.stdout == f"{tag}\n"
    words = ["-m", "bentoml", "build", "-f", BENTOFILE, ROOT, "--version", "test", "-o", "tag"]
    built = python(*words, BENTOML_HOME=str(home))
    assert built.returncode == 0, built.stderr
    bento = home / "bentos" / "mari" / "test"
    assert [model["tag"] for model in yaml.safe_load((bento / "bento.yaml").read_text())["models"]] == [tag]

    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    environment = {"BENTOML_HOME": str(home), "PYTHONPATH": SOURCES}
    candidates = {"item": [1, 2], "match": [[0.0] * 4] * 2}
    with running_server("mari:test", environment, tmp_path / "log") as address:
        answer = post_json(f"{address}/score", {"user": {"profile": [0.1] * 60}, "candidates": candidates})
    assert answer["model_tag"] == tag
    assert {name: len(scores) for name, scores in answer["scores"].items()} == {"click": 2, "buy": 2}


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_a_package_without_a_tag_is_not_stored(tmp_path: Path, content: str) -> None:
    (tmp_path / "package.json").write_text(content)
    result = python("-m", "feedworks.serving.store", tmp_path, BENTOML_HOME=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
