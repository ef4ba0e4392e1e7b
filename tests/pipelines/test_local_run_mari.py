"""MaRI on this machine, by both runners of `feedworks run`: a trained ranker, and a model from outside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .runs import ROOT, contents, run, write_data

THEIRS = ROOT / "tests" / "feedworks" / "mari" / "theirs.py"
SIDES = {
    "inputs": [
        {"name": "profile", "side": "user", "shape": [60]},
        {"name": "item", "side": "item", "dtype": "int64", "sizes": [50]},
        {"name": "match", "side": "cross", "shape": [4]},
    ],
    "outputs": ["click", "buy"],
}
RUNNERS = ["steps", "kfp"]


def both(folder: Path, *words: str | Path, cwd: Path = ROOT) -> str:
    """Run with both runners into `folder`, compare, return what the second one printed."""
    for runner in RUNNERS:
        result = run("mari", folder / runner, *words, "--runner", runner, cwd=cwd)
        assert result.returncode == 0, result.stderr[-4000:]
    steps, kfp = (folder / runner for runner in RUNNERS)
    assert (steps / "metrics.json").read_bytes() == (kfp / "metrics.json").read_bytes()
    assert contents(steps / "model") == contents(kfp / "model")
    for out in (steps, kfp):
        assert (out / "report.html").read_text().lower().startswith("<!doctype html")
        assert json.loads((out / "bench.json").read_text())["rows"]
    return result.stdout


def test_both_runners_give_the_same_metrics_and_the_same_twin(tmp_path: Path) -> None:
    data = write_data("mari", tmp_path / "data")
    said = both(tmp_path, "--data", data)
    tables = [line.split()[0] for line in said.splitlines() if line and not line.startswith(" ")]
    assert {"twin", "original", "logistic", "equal", "float32", "flops", "speed", "mari"} <= set(tables)
    assert f"model: {tmp_path / 'kfp' / 'model'}" in said


def test_a_model_from_outside_goes_through_the_same_pipeline(checkout: Path) -> None:
    words = ("--model", "ranker.py:build", "--sides", "sides.json")
    assert "auc" not in both(checkout / "out", *words, cwd=checkout)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the pipelines and a model of somebody else."""
    shutil.copy(THEIRS, tmp_path / "ranker.py")
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    (tmp_path / "sides.json").write_text(json.dumps(SIDES))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "ranker.py:build"], 2, "--model and --sides go together"),
        (["--sides", "sides.json"], 2, "--model and --sides go together"),
        (["--model", "ranker.py", "--sides", "sides.json"], 2, "MODULE:CALLABLE"),
        (["--model", "ranker.py:build", "--sides", "absent.json"], 1, "absent.json: no such file"),
        (["--model", "ranker.py:build", "--sides", "ranker.py"], 1, "cannot be read as JSON"),
        (["--data", "."], 1, "expected a ranking data folder"),
        (["--runner", "kfp", "--data", "."], 1, "expected a ranking data folder"),
        (
            ["--runner", "kfp", "--model", "ranker.py:fails", "--sides", "sides.json"],
            1,
            "RuntimeError: no weights to be found",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(checkout: Path, words: list[str], code: int, said: str) -> None:
    result = run("mari", checkout / "out", *words, cwd=checkout)
    assert result.returncode == code, result.stderr
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (checkout / "out" / "metrics.json").exists()
