"""Whole runs: killed and started again, repeated, failing, and kept back by the gate."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from feedworks.contracts.synthetic import write_synthetic
from feedworks.errors import DataError, ModelError
from feedworks.recochain.recommender import Recommender, Request
from feedworks.storage import read_json

from . import run_chain


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_synthetic(folder, num_users=60, num_items=60, mean_events=12, seed=3).folder


def start(data: Path, out: Path, *overrides: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", run_chain.__file__, str(data), str(out), *overrides]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str]) -> str:
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """The output of a run that nobody disturbed; copy it before writing to it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(start(data, out))
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kill_when(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    give_up_s = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up_s
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_and_started_again_it_ends_with_the_same_bytes(data, whole, tmp_path):
    out = tmp_path / "out"

    def steps_written(stage: str) -> int:
        return len(list(out.glob(f"work/runs/*/{stage}.state/step-*[2-9]*")))

    kill_when(lambda: steps_written("generator") > 0, start(data, out))
    assert not (out / "metrics.json").exists()
    assert not list(out.glob("work/runs/*/generator"))
    kill_when(lambda: steps_written("joint") > 0, start(data, out))
    assert not list(out.glob("work/runs/*/joint"))
    printed = finish(start(data, out))
    assert "train_generator: already done" in printed
    assert "train_joint: started" in printed
    assert contents(out) == contents(whole)
    assert {"metrics.json", "report.html", "model/model.safetensors"} <= contents(out).keys()


def test_a_finished_run_is_not_run_again(data, whole, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    metrics = run_chain.run(data, out)
    assert metrics == read_json(whole / "metrics.json")
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count("already done") == 9
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (("generator.lr=1e30",), ModelError, "lower|finite"),
        (("min_events=1000",), DataError, "users have min_events=1000"),
    ],
)
def test_another_run_that_fails_leaves_the_earlier_results(data, whole, tmp_path, overrides, error, said):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    with pytest.raises(error, match=said):
        run_chain.run(data, out, *overrides)
    earlier = contents(whole)
    assert earlier.items() <= contents(out).items()


def test_another_run_that_succeeds_takes_the_place_of_the_earlier_one(data, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    metrics = run_chain.run(data, out, "seed=1")
    assert metrics != read_json(whole / "metrics.json")
    assert read_json(out / "metrics.json") == metrics
    assert len(list(out.glob("work/runs/*"))) == 1
    assert Recommender.load(out / "model").tag != Recommender.load(whole / "model").tag


def test_a_model_that_fails_the_gate_is_kept_back(data, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    metrics = run_chain.run(data, out, "gate.min_gain=9")
    assert metrics == read_json(out / "rejected" / "metrics.json")
    assert (out / "rejected" / "report.html").is_file()
    for name in ("metrics.json", "model/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_other_data_are_another_run(whole, tmp_path):
    other = write_synthetic(tmp_path / "data", num_users=60, num_items=60, mean_events=12, seed=4).folder
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    assert run_chain.run(other, out) != read_json(whole / "metrics.json")


OPTIONS = (
    *("rank.loss=listwise", "rank.freeze_backbone=true", "rank.positions=2", "search.normalise=codebook"),
    *("tokenizer.balanced=true", "tokenizer.normalise=true", "tokenizer.levels=2", "model.item_tokens=false"),
    *("vectors.sources=text,collaborative", "vectors.weights=1,2", "vectors.text_width=8"),
    *("vectors.collaborative_width=8", "exclude_seen=true", "dedup_consecutive=false"),
    *("evaluation.sweep_beams=4,8", "evaluation.sweep_retrieved=0,3", "search.bucket_cap=2"),
)


def test_the_other_options_run_to_a_model_that_answers(data, tmp_path):
    metrics = run_chain.run(data, tmp_path, *OPTIONS)
    assert metrics["test/invalid_sid_rate"] == 0
    # A frozen backbone generates as stage I did.
    assert metrics["test/beam_recall"] == metrics["test/stage_one/beam_recall"]
    for beam in (4, 8):
        for retrieved in (0, 3):
            key = f"valid/sweep/beam{beam}_retrieved{retrieved}"
            assert {f"{key}/generation", f"{key}/rerank", f"{key}/gain/ci_low"} <= metrics.keys()
    report = (tmp_path / "report.html").read_text()
    assert "Beam and retrieval length" in report
    assert "own history are left out" in report
    recommender = Recommender.load(tmp_path / "model")
    history = [1, 2, 3, 1]
    (response,) = recommender.recommend([Request(history, 10)])
    assert response.fallback is None
    assert 0 < len(response.items) <= 10
    assert {item.item_id for item in response.items}.isdisjoint(history)
    assert all(len(item.sid) == 2 for item in response.items)
