"""The packaged folder: all that serving needs, a card with the numbers, and a tag that names the content."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from feedworks.errors import ModelError
from feedworks.mari import steps
from feedworks.mari.config import resolve
from feedworks.mari.packaging import FILES
from feedworks.mari.scorer import Scorer
from feedworks.storage import read_json

from . import theirs


def test_the_folder_holds_what_the_card_says(outside_run: Path) -> None:
    model = outside_run / "model"
    held = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert held - {"README.md"} == {name for name in FILES if not name.startswith("onnx/")}
    facts = read_json(model / "package.json")
    assert set(facts["files"]) == held - {"package.json"}
    for name, digest in facts["files"].items():
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest
    card = (model / "README.md").read_text()
    for said in (
        facts["tag"],
        "2602.23105",
        "theirs.py:build",
        "| input profile |",
        "click, buy",
        "verify.rtol",
    ):
        assert said in card
    assert "onnx" not in card.partition("## Files")[2]
    assert str(Path(theirs.__file__).parent) not in card
    assert facts["made_from"] == "theirs.py:build"


def test_the_card_of_a_trained_ranker_has_its_metrics(trained_run: Path) -> None:
    card = (trained_run / "model" / "README.md").read_text()
    assert "| twin |" in card
    assert "| item_rate |" in card


def test_the_service_s_scorer_loads_it_and_scores_as_the_model(outside_run: Path) -> None:
    scorer = Scorer.load(outside_run / "model")
    rng = np.random.default_rng(0)
    requests = [
        (
            rng.standard_normal(60, np.float32),
            rng.integers(0, 50, rows),
            rng.standard_normal((rows, 4), np.float32),
        )
        for rows in (1, 9)
    ]
    model = theirs.build().eval()
    for scores, (profile, item, match) in zip(scorer.score(requests), requests, strict=True):
        with torch.no_grad():
            wide = torch.from_numpy(np.broadcast_to(profile, (len(item), 60)).copy())
            expected = model(wide, torch.from_numpy(item), torch.from_numpy(match))
        np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_changed_file_is_refused(outside_run: Path, tmp_path: Path) -> None:
    shutil.copytree(outside_run / "model", tmp_path / "model")
    sides = tmp_path / "model" / "sides.json"
    sides.write_text(sides.read_text().replace('"buy"', '"bye"'))
    with pytest.raises(ModelError, match="is not the file that was packaged"):
        Scorer.load(tmp_path / "model")


def test_the_tag_names_the_twin_and_not_its_metrics(
    outside_run: Path, outside: list[str], tmp_path: Path
) -> None:
    (work,) = (outside_run / "work" / "runs").iterdir()
    shutil.copytree(work, tmp_path / "work")
    work = tmp_path / "work"

    def tag(name: str) -> str:
        config = resolve("tiny", outside)
        return steps.package(work / "twin", work / "sites", work / "evaluation", tmp_path / name, config).tag

    first = tag("a")
    metrics = work / "evaluation" / "metrics.json"
    metrics.write_text(metrics.read_text().replace("}", ', "test/twin/auc": 0.5}'))
    assert tag("b") == first
    sides = work / "twin" / "sides.json"
    sides.write_text(sides.read_text().replace('"buy"', '"bye"'))
    assert tag("c") != first
