"""From a package to a bento that answers: store, build, serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedworks import images
from feedworks.serving.server import post_json, running_server
from feedworks.storage import read_json

from ..serving import bentos
from . import served


def test_the_base_image_is_ours() -> None:
    assert bentos.base_image("ksa") == images.CPU_SERVE


def test_a_bento_holds_the_stored_model_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "bentoml"
    home.mkdir()
    folder = served.write_package(tmp_path / "model")
    tag = read_json(folder / "package.json")["tag"]
    assert bentos.store(folder, home) == f"{tag}\n"
    assert bentos.build("ksa", home) == [tag]

    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    environment = {"BENTOML_HOME": str(home), "PYTHONPATH": bentos.SOURCES}
    with running_server("ksa:test", environment, tmp_path / "log") as address:
        body = {"prompt": "the sea", "max_tokens": 3, "temperature": 0}
        answer = post_json(f"{address}/v1/completions", body)
        assert answer["model"] == post_json(f"{address}/generate", body)["model_tag"] == tag
