"""From a packaged student to a bento that answers: store, build, serve."""

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

from . import online, served, toy

BENTOFILE = online.ROOT / "containers" / "bento" / "ocarm.yaml"
SOURCES = online.environment(Path())["PYTHONPATH"]


def python(*words: str | Path, **extra: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "FEEDWORKS_MODEL_DIR"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=online.ROOT,
        env={**environment, "PYTHONPATH": SOURCES, "BENTOML_DO_NOT_TRACK": "True", **extra},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_base_image_is_ours() -> None:
    assert yaml.safe_load(BENTOFILE.read_text())["docker"]["base_image"] in images.ALLOWED


@pytest.mark.slow
def test_a_bento_holds_the_stored_student_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, home = served.write_model_package(tmp_path / "model"), tmp_path / "bentoml"
    home.mkdir()
    tag = read_json(model / "package.json")["tag"]
    assert python("-m", "feedworks.serving.store", model, BENTOML_HOME=str(home)) == f"{tag}\n"
    words = ["-m", "bentoml", "build", "-f", BENTOFILE, online.ROOT, "--version", "test", "-o", "tag"]
    python(*words, BENTOML_HOME=str(home))
    bento = yaml.safe_load((home / "bentos" / "ocarm" / "test" / "bento.yaml").read_text())
    assert [stored["tag"] for stored in bento["models"]] == [tag]
    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    features = served.as_json(served.rows_of(toy.columns(3, toy.catalogue()), range(3))[2])
    user = {"user_id": 2, "surface": 1, "features": features}
    environment = {"BENTOML_HOME": str(home), "PYTHONPATH": SOURCES}
    with running_server("ocarm:test", environment, tmp_path / "log") as address:
        answer = post_json(f"{address}/predict", {"users": [user]})
    assert answer["model_tag"] == tag
    assert answer["users"][0]["source"] == "model"
