"""The whole paper on this machine, by both runners of `feedworks run`, on a handful of synthetic users."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .runs import ENVIRONMENT, ROOT, command, contents, run, write_data

RUNNERS = ["steps", "kfp"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data("recochain", tmp_path_factory.mktemp("events"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    outs = {runner: tmp_path_factory.mktemp(runner) for runner in RUNNERS}
    for runner, out in outs.items():
        result = run("recochain", out, "--data", data, "--runner", runner)
        assert result.returncode == 0, result.stderr[-4000:]
        assert f"report: {out / 'report.html'}" in result.stdout
        assert result.stderr.strip(), "progress is visible"
    return outs


def test_both_runners_give_the_same_bytes(runs: dict[str, Path]) -> None:
    steps, kfp = (runs[runner] for runner in RUNNERS)
    assert (steps / "metrics.json").read_bytes() == (kfp / "metrics.json").read_bytes()
    assert contents(steps / "model") == contents(kfp / "model")


def test_metrics_have_the_keys_that_the_readme_promises(runs: dict[str, Path]) -> None:
    metrics = json.loads((runs["steps"] / "metrics.json").read_text())
    methods = ("popularity", "repeat_recent", "item_knn", "sasrec", "generation", "rerank")
    for method in methods:
        for metric in ("recall", "ndcg", "mrr"):
            for cutoff in (5, 10):
                key = f"test/{method}/{metric}@{cutoff}"
                assert 0 <= metrics[f"{key}/ci_low"] <= metrics[key] <= metrics[f"{key}/ci_high"] <= 1, key


def test_the_report_is_one_file_that_loads_nothing(runs: dict[str, Path]) -> None:
    text = (runs["kfp"] / "report.html").read_text()
    assert text.lower().startswith("<!doctype html")
    assert not [word for word in ('src="http', "<link", "@import", "<script src") if word in text]


def break_items(folder: Path) -> None:
    path = folder / "items.parquet"
    table = pq.read_table(path)
    vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False))
    vectors[3, 1] = np.nan
    column = pa.array(list(vectors), type=table.schema.field("vector").type)
    index = table.schema.get_field_index("vector")
    pq.write_table(table.set_column(index, table.schema.field("vector"), column), path)


@pytest.mark.parametrize("runner", RUNNERS)
def test_bad_data_stops_before_training_and_keeps_the_earlier_run(tmp_path: Path, runner: str) -> None:
    write_data("recochain", tmp_path / "data")
    break_items(tmp_path / "data")
    out = tmp_path / "out"
    (out / "model").mkdir(parents=True)
    for name in ("metrics.json", "report.html", "model/config.json"):
        (out / name).write_text("earlier")
    result = run("recochain", out, "--data", tmp_path / "data", "--runner", runner)
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("feedworks: data ")
    for word in ("items", "vector", "1 "):
        assert word in error
    assert "train" not in result.stderr
    for name in ("metrics.json", "report.html", "model/config.json"):
        assert (out / name).read_text() == "earlier"


def test_a_closed_gate_packages_nothing(data: Path, tmp_path: Path) -> None:
    result = run("recochain", tmp_path, "--data", data, "--set", "gate.min_gain=1000")
    assert result.returncode == 0, result.stderr
    assert "the gate kept the model back" in result.stderr
    assert (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_wrong_setting_stops_at_once(data: Path, tmp_path: Path, runner: str) -> None:
    result = run("recochain", tmp_path, "--data", data, "--runner", runner, "--set", "generator.speed=9")
    assert result.returncode == 1
    assert "unknown setting 'generator.speed'" in result.stderr
    assert "generator.lr" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on_to_the_same_result(
    data: Path, tmp_path: Path, runs: dict[str, Path], number: int
) -> None:
    process = subprocess.Popen(
        command("recochain", tmp_path, "--data", data),
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 120
    while not list((tmp_path / "work").rglob("generator*")) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert "Traceback" not in errors
    assert not (tmp_path / "metrics.json").exists()
    assert run("recochain", tmp_path, "--data", data).returncode == 0
    assert (tmp_path / "metrics.json").read_bytes() == (runs["steps"] / "metrics.json").read_bytes()
    assert contents(tmp_path / "model") == contents(runs["steps"] / "model")
