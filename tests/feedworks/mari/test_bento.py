"""From a packaged twin to a bento that answers: store, build, serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedworks import images
from feedworks.serving.server import post_json, running_server
from feedworks.storage import read_json

from ..serving import bentos


def test_the_base_image_is_ours() -> None:
    assert bentos.base_image("mari") == images.CPU_SERVE


def test_a_bento_holds_the_stored_twin_and_answers(
    outside_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "bentoml"
    home.mkdir()
    for _ in range(2):  # the second time it is there already
        stored = bentos.store(outside_run / "model", home)
    tag = read_json(outside_run / "model" / "package.json")["tag"]
    assert stored == f"{tag}\n"
    assert bentos.build("mari", home) == [tag]

    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    environment = {"BENTOML_HOME": str(home), "PYTHONPATH": bentos.SOURCES}
    candidates = {"item": [1, 2], "match": [[0.0] * 4] * 2}
    with running_server("mari:test", environment, tmp_path / "log") as address:
        answer = post_json(f"{address}/score", {"user": {"profile": [0.1] * 60}, "candidates": candidates})
    assert answer["model_tag"] == tag
    assert {name: len(scores) for name, scores in answer["scores"].items()} == {"click": 2, "buy": 2}


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_a_package_without_a_tag_is_not_stored(tmp_path: Path, content: str) -> None:
    (tmp_path / "package.json").write_text(content)
    result = bentos.python("-m", "feedworks.serving.store", tmp_path, BENTOML_HOME=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
