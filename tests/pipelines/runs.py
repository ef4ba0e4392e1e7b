"""`feedworks run` on so little data, and with such settings, that no task takes a minute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.synthetic_ranking import write_synthetic_ranking
from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.contracts.synthetic_text import write_synthetic_text

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"}
_STAGES = ("pretrain", "distil", "anneal")
SETTINGS = {
    "recochain": [
        *("generator.epochs=2", "joint.epochs=1", "sasrec_training.epochs=1"),
        *("evaluation.sweep_beams=", "evaluation.bootstrap=50", "gate.min_gain=-1"),
    ],
    "mari": [
        *("training.epochs=1", "bench.rows=1,50", "bench.repeats=3"),
        *("evaluation.bootstrap=20", "verify.requests=1,7"),
    ],
    "ocarm": ["teacher.epochs=1", "student.epochs=1", "evaluation.bootstrap=20", "model.hidden=8"],
    "ksa": [
        *("corpus.vocab_size=600", "needles.tasks=single,frequent", "needles.lengths=112,144"),
        *("needles.train_rows=8", "evaluation.seq_len=144", "evaluation.buckets=32", "evaluation.max_rows=4"),
        *("evaluation.decode_tokens=60", "evaluation.cache_lengths=4096", "evaluation.max_new_tokens=4"),
        *(f"{stage}.seq_len=144" for stage in _STAGES),
        *(f"{stage}.steps_per_epoch=2" for stage in (*_STAGES, "extend")),
        "extend.lengths=192",
    ],
}


def command(paper: str, out: Path, *words: str | Path) -> list[str]:
    """The command line of a run into `out`."""
    quick = [f"--set={setting}" for setting in SETTINGS[paper]]
    run = ["run", paper, "--preset", "tiny", "--out", str(out), *quick, *map(str, words)]
    return [sys.executable, "-m", "feedworks", *run]


def run(
    paper: str, out: Path, *words: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a paper into `out`, with what it printed."""
    return subprocess.run(
        command(paper, out, *words),
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_data(paper: str, folder: Path) -> Path:
    """Write a small data folder of the kind that a paper reads."""
    folder.mkdir(parents=True, exist_ok=True)
    if paper == "recochain":
        write_synthetic(folder, num_users=150, num_items=100, seed=1)
    elif paper == "mari":
        write_synthetic_ranking(folder, num_rows=2000, seed=1)
    elif paper == "ocarm":
        write_synthetic_retention(folder, num_users=250, num_items=300, seed=1)
    else:
        write_synthetic_text(folder, num_documents=12, num_words=800, seed=1)
    return folder
