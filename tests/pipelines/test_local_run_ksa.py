"""KSA on this machine, by both runners of `feedworks run`: a handful of tales, a few steps of each stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from .runs import ROOT, contents, run, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data("ksa", tmp_path_factory.mktemp("tales"))


def same_by_both_runners(data: Path, folder: Path, *settings: str) -> str:
    """Run with both into `folder`, compare, return what the second one printed."""
    words = [word for setting in settings for word in ("--set", setting)]
    for runner in ("steps", "kfp"):
        result = run("ksa", folder / runner, "--data", data, "--runner", runner, *words)
        assert result.returncode == 0, result.stderr[-4000:]
    steps, kfp = folder / "steps", folder / "kfp"
    assert (steps / "metrics.json").read_bytes() == (kfp / "metrics.json").read_bytes()
    assert contents(steps / "model") == contents(kfp / "model")
    for out in (steps, kfp):
        assert (out / "report.html").read_text().lower().startswith("<!doctype html")
    return result.stdout


def test_both_runners_give_the_same_metrics_and_the_same_model(data: Path, tmp_path: Path) -> None:
    said = same_by_both_runners(data, tmp_path, "mode=convert", "baselines=window")
    tables = [line.split()[0] for line in said.splitlines() if line and not line.startswith(" ")]
    assert {"heldout", "ksa", "full", "window", "needle", "cache", "decode"} <= set(tables)
    assert f"model: {tmp_path / 'kfp' / 'model'}" in said


@pytest.mark.slow
def test_a_run_from_scratch_without_baselines_goes_through_the_same_pipeline(
    data: Path, tmp_path: Path
) -> None:
    said = same_by_both_runners(data, tmp_path, "baselines=")
    assert not {"window", "chunk"} & {line.split()[0] for line in said.splitlines() if line}


def test_what_cannot_be_used_is_one_line(data: Path, tmp_path: Path) -> None:
    for words, said in (
        (("--data", data, "--set", "base.folder=qwen"), "set mode=convert"),
        (("--data", ROOT / "tests"), "expected a text data folder"),
        (("--data", data, "--model", "m:f", "--sides", "s"), "takes no --model"),
    ):
        result = run("ksa", tmp_path / "out", *words)
        assert result.returncode
        assert said in result.stderr.splitlines()[-1]
        assert not (tmp_path / "out" / "metrics.json").exists()
