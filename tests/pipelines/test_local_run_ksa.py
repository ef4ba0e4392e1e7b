"""KSA on this machine, by both runners of `feedworks run`: a handful of tales, a few steps of each stage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feedworks.contracts.synthetic_text import write_synthetic_text

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
STAGES = ("pretrain", "distil", "anneal")
SETTINGS = (
    *("corpus.vocab_size=600", "needles.tasks=single,frequent", "needles.lengths=112,144"),
    *("needles.train_rows=8", "evaluation.seq_len=144", "evaluation.buckets=32", "evaluation.max_rows=4"),
    *("evaluation.decode_tokens=60", "evaluation.cache_lengths=4096", "evaluation.max_new_tokens=4"),
    *(f"{stage}.seq_len=144" for stage in STAGES),
    *(f"{stage}.steps_per_epoch=2" for stage in (*STAGES, "extend")),
    "extend.lengths=192",
)


def run_ksa(out: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    quick = [word for setting in SETTINGS for word in ("--set", setting)]
    command = ["run", "ksa", "--preset", "tiny", "--out", str(out), *quick, *map(str, words)]
    return subprocess.run(
        [sys.executable, "-m", "feedworks", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tales")
    write_synthetic_text(folder, num_documents=12, num_words=800, seed=1)
    return folder


def same_by_both_runners(data: Path, folder: Path, *settings: str) -> str:
    """Run with both into `folder`, compare, return what the second one printed."""
    words = [word for setting in settings for word in ("--set", setting)]
    for runner in ("steps", "kfp"):
        result = run_ksa(folder / runner, "--data", data, "--runner", runner, *words)
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
    assert "window" not in same_by_both_runners(data, tmp_path, "baselines=")


def test_what_cannot_be_used_is_one_line(data: Path, tmp_path: Path) -> None:
    for words, said in (
        (("--data", data, "--set", "base.folder=qwen"), "set mode=convert"),
        (("--data", ROOT / "tests"), "expected a text data folder"),
        (("--data", data, "--model", "m:f", "--sides", "s"), "takes no --model"),
    ):
        result = run_ksa(tmp_path / "out", *words)
        assert result.returncode
        assert said in result.stderr.splitlines()[-1]
        assert not (tmp_path / "out" / "metrics.json").exists()
