"""A step by `run_step`: GPUs that were asked for must be there, and a killed one's successor goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from feedworks.contracts.synthetic import write_synthetic
from feedworks.errors import ConfigError
from feedworks.launch import run_step, share_of_threads, use_own_cores
from feedworks.recochain import config, steps
from feedworks.training.state import STATE_ROOT, state_of


def train(folder: Path, num_gpus: int | str, *overrides: str) -> None:
    paths = [str(folder / name) for name in ("sequences", "sasrec")]
    run_step("recochain", "train_baseline", paths, ("tiny", overrides), num_processes=num_gpus)


@pytest.mark.parametrize("num_gpus", ["1", 2, "64"])
def test_gpus_that_are_not_there_are_told_before_anything_runs(tmp_path: Path, num_gpus: int | str) -> None:
    if torch.cuda.device_count() >= int(num_gpus):
        pytest.skip("this machine has as many GPUs")
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, num_gpus)
    (line,) = str(caught.value).splitlines()
    for word in (f"num_gpus={num_gpus}", f"sees {torch.cuda.device_count()} CUDA", "set num_gpus=0"):
        assert word in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_setting_that_asks_for_cuda_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    data = write_synthetic(tmp_path / "events", num_users=60, num_items=60, seed=2).folder
    steps.prepare(data, tmp_path / "sequences", config.resolve("tiny", []))
    with pytest.raises(ConfigError, match=r"accelerator=cuda, but torch sees no CUDA device; use"):
        train(tmp_path, "0", "sasrec_training.accelerator=cuda")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "sequences"]


@pytest.mark.parametrize("num_gpus", ["two", "-1", "1.5", ""])
def test_a_number_of_gpus_is_a_count(tmp_path: Path, num_gpus: str) -> None:
    with pytest.raises(ConfigError, match="expected a count such as 0 or 2"):
        train(tmp_path, num_gpus)


@pytest.mark.parametrize(
    ("told", "num_processes", "each"), [("8", 2, "4"), ("2", 8, "1"), ("7", 2, "3"), ("", 2, None)]
)
def test_processes_share_the_threads_of_their_pod(
    monkeypatch: pytest.MonkeyPatch, told: str, num_processes: int, each: str | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert share_of_threads(num_processes).get("OMP_NUM_THREADS") == each


@pytest.mark.parametrize(
    ("limit", "told", "threads"),
    [
        ("1600000 100000", "", "16"),
        ("50000 100000", "", "1"),
        ("max 100000", "", ""),
        ("1600000 100000", "4", "4"),
    ],
)
def test_a_task_counts_the_cores_of_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, told: str, threads: str
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    if not told:
        monkeypatch.delenv("OMP_NUM_THREADS")
    use_own_cores(tmp_path)
    assert os.environ.get("OMP_NUM_THREADS", "") == threads


def test_a_state_lies_on_the_volume_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "minio" / "generator"
    monkeypatch.delenv(STATE_ROOT, raising=False)
    beside = state_of(out)
    assert beside == tmp_path / "minio" / "generator.state"
    for absent in ("", "relative", str(tmp_path / "no" / "such" / "volume"), "/proc/self/.state"):
        monkeypatch.setenv(STATE_ROOT, absent)
        assert state_of(out) == beside, absent
    monkeypatch.setenv(STATE_ROOT, str(tmp_path / ".state"))
    assert state_of(out) == tmp_path / ".state" / beside.relative_to("/")
    monkeypatch.chdir(tmp_path)
    assert state_of(Path("minio/generator")) == state_of(out)


def test_a_pod_that_takes_the_place_of_a_killed_one_goes_on(tmp_path: Path) -> None:
    """A pod's own files go with it, its paths and the volume stay."""
    events = write_synthetic(tmp_path / "events", num_users=150, num_items=100, seed=2)
    steps.prepare(events.folder, tmp_path / "sequences", config.resolve("tiny", []))
    pod, volume = tmp_path / "pod", tmp_path / "workspace"
    volume.mkdir()
    settings = (
        "sasrec_training.epochs=8",
        "sasrec_training.patience=0",
        "sasrec_training.checkpoint_every_s=0",
    )
    words = ["--preset=tiny", *(f"--set={setting}" for setting in settings), "recochain", "train_baseline"]
    command = [sys.executable, "-m", "feedworks.launch", *words, str(tmp_path / "sequences")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(out: Path, **extra: str) -> subprocess.Popen[str]:
        out.parent.mkdir()
        return subprocess.Popen(
            [*command, str(out)], env=environment | extra, stderr=subprocess.PIPE, text=True
        )

    first = start(pod / "sasrec", FEEDWORKS_STATE=str(volume / ".state"))
    deadline_s = time.monotonic() + 120
    while not list(volume.rglob("step-*6")) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert not (pod / "sasrec").exists(), "it was done before it was killed"
    shutil.rmtree(pod)
    second = start(pod / "sasrec", FEEDWORKS_STATE=str(volume / ".state"))
    said = second.communicate(timeout=300)[1]
    assert second.returncode == 0, said
    steps_done = re.search(r"train: (\d+)/24", said)
    assert steps_done
    assert int(steps_done[1]) >= 6, said
    assert not list(volume.rglob("sasrec.state")), "what is done leaves no state"
    undisturbed = start(tmp_path / "other" / "sasrec")
    assert undisturbed.communicate(timeout=300)[0] is None
    weights = "model.safetensors"
    assert (pod / "sasrec" / weights).read_bytes() == (tmp_path / "other" / "sasrec" / weights).read_bytes()
