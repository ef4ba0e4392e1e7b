"""OCARM on this machine, by both runners of `feedworks run`, on a handful of synthetic users."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.errors import DataError, ModelError
from feedworks.features.schema import training_only_columns
from feedworks.features.training_set import TrainingSet
from feedworks.ocarm import chain, steps
from feedworks.ocarm.config import resolve

ROOT = Path(__file__).resolve().parents[3]
SOURCES = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
QUICK = ["teacher.epochs=1", "student.epochs=1", "evaluation.bootstrap=20", "model.hidden=8"]
RUNNERS = ["steps", "kfp"]


def run_ocarm(data: Path, out: Path, *words: str, runner: str = "steps") -> subprocess.CompletedProcess[str]:
    settings = [word for setting in QUICK for word in ("--set", setting)]
    command = ["run", "ocarm", "--preset", "tiny", "--data", str(data), "--out", str(out), *settings, *words]
    return subprocess.run(
        [sys.executable, "-m", "feedworks", *command, "--runner", runner],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished_steps(out: Path) -> Path:
    (folder,) = (out / "work" / "runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_retention(tmp_path_factory.mktemp("log"), num_users=250, num_items=300, seed=1)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    outs = {runner: tmp_path_factory.mktemp(runner) for runner in RUNNERS}
    for runner, out in outs.items():
        result = run_ocarm(data, out, runner=runner)
        assert result.returncode == 0, result.stderr[-4000:]
        assert {"upper", "ocarm", "base", "recovered", "share@1"} <= set(result.stdout.split())
    return outs


def test_both_runners_give_the_same_bytes(runs: dict[str, Path]) -> None:
    plain, kfp = (runs[runner] for runner in RUNNERS)
    assert (plain / "metrics.json").read_bytes() == (kfp / "metrics.json").read_bytes()
    assert contents(plain / "model") == contents(kfp / "model")


def test_the_metrics_compare_every_arm(runs: dict[str, Path]) -> None:
    metrics = json.loads((runs["kfp"] / "metrics.json").read_text())
    for arm in ("base", "sfe", "joint", "logit", "ocarm", "upper"):
        for days in (1, 7):
            key = f"test/{arm}/auc@{days}"
            assert 0 <= metrics[f"{key}/ci_low"] <= metrics[key] <= metrics[f"{key}/ci_high"] <= 1
    assert "recovered/ocarm/share@1/ci_low" in metrics


def test_no_file_of_the_model_names_the_content(runs: dict[str, Path]) -> None:
    names = [name.encode() for name in training_only_columns()]
    for path, content in contents(runs["steps"] / "model").items():
        assert not [name for name in names if name in content], path


def test_the_students_task_gets_no_content(runs: dict[str, Path]) -> None:
    root = next((runs["kfp"] / "work" / "kfp").glob("ocarm-*"))
    said = json.loads(next((root / "train-student").rglob("executor_output.json")).read_text())
    assert list(said["artifacts"]) == ["student"]
    folders = {path.name for path in root.iterdir()}
    assert {"audit-times", "audit-student", "export-vectors", "materialize", "gate", "package"} <= folders
    pages = [*root.glob("*/page"), *root.glob("*/freshness"), *root.glob("*/report")]
    assert len(pages) == 4
    assert all(page.read_text().lower().startswith("<!doctype html") for page in pages)


def test_the_gate_keeps_back_what_gains_too_little(runs: dict[str, Path]) -> None:
    evaluation = next((runs["kfp"] / "work" / "kfp").glob("ocarm-*/evaluate/evaluation"))
    assert steps.passes_gate(evaluation, resolve("tiny", ["gate.min_gain=-1"]))
    assert not steps.passes_gate(evaluation, resolve("tiny", ["gate.min_gain=0.9"]))


def test_a_teacher_that_knows_the_labels_stops_the_run(runs: dict[str, Path], tmp_path: Path) -> None:
    joined = finished_steps(runs["steps"]) / "joined"
    strict = resolve("tiny", [*QUICK, "gate.max_teacher_auc=0.5"])
    with pytest.raises(ModelError, match=r"the teacher's AUC of lt.* the content tells the label"):
        steps.train_teacher(joined / "observables", joined / "content", tmp_path / "teacher", strict)
    assert not (tmp_path / "teacher").exists()


def test_a_failed_audit_of_times_fails_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes its page whatever it finds, and the page must not pass for a proof in the next run."""
    join = steps.join_features

    def leaking(samples: Path, tables: Path, observables: Path, content: Path) -> TrainingSet:
        found = join(samples, tables, observables, content)
        table = pq.read_table(observables / "observables.parquet")
        late = pc.add(table["aggregated_time"], 100 * 86_400 * 1_000_000)
        place = table.column_names.index("aggregated_time")
        pq.write_table(table.set_column(place, "aggregated_time", late), observables / "observables.parquet")
        return found

    monkeypatch.setattr(steps, "join_features", leaking)
    monkeypatch.setattr(steps, "train_teacher", lambda *_: pytest.fail("trained on rows out of order"))
    for _ in range(2):
        with pytest.raises(DataError, match="aggregated_time <= bid_time"):
            chain.run(data, tmp_path, resolve("tiny", QUICK))
        assert list(tmp_path.glob("work/runs/*/audit/times.html"))


def test_a_killed_run_goes_on_where_it_was(data: Path, tmp_path: Path, runs: dict[str, Path]) -> None:
    before = finished_steps(runs["steps"])
    kept = tmp_path / before.relative_to(runs["steps"])
    for name in ("built", "joined", "online", "teacher", "vectors"):  # as of when the student's turn comes
        shutil.copytree(before / name, kept / name)
    settings = [word for setting in QUICK for word in ("--set", setting)]
    words = ["run", "ocarm", "--preset", "tiny", "--data", str(data), "--out", str(tmp_path), *settings]
    process = subprocess.Popen(
        [sys.executable, "-m", "feedworks", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as said:
        assert any(line.startswith("train_student: started") for line in said)
        process.kill()
    process.wait()
    again = run_ocarm(data, tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "train_teacher: already done" in again.stderr
    assert contents(tmp_path / "model") == contents(runs["steps"] / "model")
