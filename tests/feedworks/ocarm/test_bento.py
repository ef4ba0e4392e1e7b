"""From a packaged student to a bento that answers: store, build, serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedworks import images
from feedworks.serving.server import post_json, running_server
from feedworks.storage import read_json

from ..serving import bentos
from . import served, toy


def test_the_base_image_is_ours() -> None:
    assert bentos.base_image("ocarm") == images.CPU_SERVE


@pytest.mark.slow
def test_a_bento_holds_the_stored_student_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, home = served.write_model_package(tmp_path / "model"), tmp_path / "bentoml"
    home.mkdir()
    tag = read_json(model / "package.json")["tag"]
    assert bentos.store(model, home) == f"{tag}\n"
    assert bentos.build("ocarm", home) == [tag]
    monkeypatch.delenv("FEEDWORKS_MODEL_DIR", raising=False)
    features = served.as_json(served.rows_of(toy.columns(3, toy.catalogue()), range(3))[2])
    user = {"user_id": 2, "surface": 1, "features": features}
    environment = {"BENTOML_HOME": str(home), "PYTHONPATH": bentos.SOURCES}
    with running_server("ocarm:test", environment, tmp_path / "log") as address:
        answer = post_json(f"{address}/predict", {"users": [user]})
    assert answer["model_tag"] == tag
    assert answer["users"][0]["source"] == "model"
