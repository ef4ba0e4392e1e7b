"""From a package to a bento that answers: store, build, serve."""

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

from . import served

ROOT = Path(__file__).resolve().parents[3]
SOURCES = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
BENTOFILE = ROOT / "containers" / "bento" / "ksa.yaml"


def python(*words: str | Path, **extra: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "FEEDWORKS_MODEL_DIR"}
    ended = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": SOURCES, "BENTOML_DO_NOT_TRACK": "True", **extra},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_base_image_is_ours() -> None:
    assert yaml.safe_load(BENTOFILE.read_text())["docker"]["base_image"] in images.ALLOWED


def test_a_bento_holds_the_stored_model_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "bentoml"
    home.mkdir()
    folder = served.write_package(tmp_path / "model")
    tag = read_json(folder / "package.json")["tag"]
    assert python("-m", "feedworks.serving.store", folder, BENTOML_HOME=str(home)) == f"{tag}\n"
    words = ["-m", "bentoml", "build", "-f", BENTOFILE, ROOT, "--version", "test", "-o", "tag"]
    python(*words, BENTOML_HOME=str(home))
    bento = home / "bentos" / "ksa" / "test"
    assert [model["tag"] for model in yaml.safe_load((bento / "bento.yaml").read_text())["models"]] == [tag]

    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    environment = {"BENTOML_HOME": str(home), "PYTHONPATH": SOURCES}
    with running_server("ksa:test", environment, tmp_path / "log") as address:
        body = {"prompt": "the sea", "max_tokens": 3, "temperature": 0}
        answer = post_json(f"{address}/v1/completions", body)
        assert answer["model"] == post_json(f"{address}/generate", body)["model_tag"] == tag
