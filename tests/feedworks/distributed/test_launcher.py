"""A training step on two nodes from end to end: launcher, torchrun as Kubeflow Trainer starts it, result.

The nodes are processes of this machine, started by a stand-in for the controller with Trainer's variables.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from feedworks.contracts.synthetic_ranking import write_synthetic_ranking
from feedworks.distributed.workspace import run_key
from feedworks.errors import ConfigError, FeedworksError
from feedworks.launch import run_step
from feedworks.mari import config, steps
from feedworks.training.checkpoint import load_extra

from .api import Api

SETTINGS = ("tiny", ["training.epochs=2", "training.batch_size=90", "training.accelerator=cpu"])


class Nodes:
    """Starts a process for each node of a job, with what Trainer's torch plugin sets."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.names: list[str] = []
        self.jobs: list[dict[str, object]] = []
        self._api = api
        self._folder = folder
        self._read: dict[str, int] = {}
        api.step = self.step

    def step(self) -> None:
        for name, job in self._api.jobs.items():
            if not self.processes:
                self._start(name, job)
            self._collect(name)

    def _start(self, name: str, job: dict[str, object]) -> None:
        trainer = job["spec"]["trainer"]
        self.jobs.append(job)
        self.names = self._api.add_pods(name, count=trainer["numNodes"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank, pod in enumerate(self.names):
            env = os.environ | {each["name"]: each["value"] for each in trainer["env"]}
            env |= {
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
            with (self._folder / pod).open("wb") as log:
                self.processes.append(
                    subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
                )

    def _collect(self, job: str) -> None:
        codes = []
        for pod, process in zip(self.names, self.processes, strict=True):
            codes.append(process.poll())
            lines = (self._folder / pod).read_text().splitlines()
            self._api.say(pod, *lines[self._read.get(pod, 0) :])
            self._read[pod] = len(lines)
            if codes[-1] is not None and self._api.pods[pod]["status"]["phase"] == "Running":
                self._api.end(pod, codes[-1])
        if any(codes):
            self._api.finish(job, "Failed", "FailedJobs", "jobset failed")
        elif codes == [0] * len(codes):
            self._api.finish(job, "Complete", "AllJobsCompleted", "jobset completed successfully")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def nodes(api, tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    (tmp_path / "workspace").mkdir()
    monkeypatch.setenv("FEEDWORKS_WORKSPACE", str(tmp_path / "workspace"))
    started = Nodes(api, tmp_path / "logs")
    yield started
    started.close()


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_two_nodes_train_what_one_does(api, nodes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data, out = tmp_path / "data", tmp_path / "task" / "ranker"
    write_synthetic_ranking(data, num_users=60, num_items=50, num_rows=1200, seed=1)
    run_step("mari", "make_ranker", [str(data), str(out)], SETTINGS, nodes=(2, 0, "x/gpu"))
    said = capsys.readouterr()
    assert "[node 0] train:" in said.out
    assert "2 nodes" in said.err
    steps.make_ranker(data, tmp_path / "one", config.resolve(*SETTINGS))
    assert contents(out) == contents(tmp_path / "one")
    expected, found = (load_extra(folder)["history"] for folder in (tmp_path / "one", out))
    for one, two in zip(expected, found, strict=True):
        assert abs(one["train/loss"] - two["train/loss"]) < 1e-5
    assert contents(tmp_path / "workspace") == ["runs"], "inputs, state and result are cleared away"
    (job,) = nodes.jobs
    assert api.deleted == [job["metadata"]["name"]]
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in job["spec"]["trainer"]["env"]
    assert str(tmp_path / "workspace") in job["spec"]["trainer"]["args"][-1]


def test_a_node_asks_for_the_gpus_that_the_pipeline_names(api, tmp_path, monkeypatch):
    monkeypatch.setenv("FEEDWORKS_WORKSPACE", str(tmp_path))
    (tmp_path / "data").mkdir()
    limits = []

    def fail() -> None:
        for name, job in api.jobs.items():
            limits.append(job["spec"]["trainer"]["resourcesPerNode"]["limits"])
            api.finish(name, "Failed", "FailedJobs", "no such node")

    api.step = fail
    with pytest.raises(FeedworksError, match="no such node"):
        run_step(
            "mari",
            "make_ranker",
            [str(tmp_path / "data"), str(tmp_path / "out")],
            SETTINGS,
            nodes=(2, 4, "amd.com/gpu"),
        )
    assert {each: number for each, number in limits[0].items() if "gpu" in each} == {"amd.com/gpu": "4"}


@pytest.mark.slow
def test_an_error_of_the_step_is_told_with_its_own_words(api, nodes, tmp_path):
    (tmp_path / "data").mkdir()
    out = tmp_path / "task" / "ranker"
    with pytest.raises(FeedworksError, match=r"ended with code 1 \(Error\); its last lines") as caught:
        run_step("mari", "make_ranker", [str(tmp_path / "data"), str(out)], SETTINGS, nodes=(2, 0, "x/gpu"))
    assert "feedworks: " in str(caught.value)
    assert "fields.json is missing" in str(caught.value)
    assert "ChildFailedError" not in str(caught.value), "torchrun's report is left out"
    assert not out.exists()
    assert len(api.deleted) == 1


def test_a_result_that_a_killed_launcher_left_is_taken(api, tmp_path, monkeypatch):
    monkeypatch.setenv("FEEDWORKS_WORKSPACE", str(tmp_path))
    out = tmp_path / "task" / "ranker"
    run = tmp_path / "runs" / run_key("mari", "make_ranker", *SETTINGS, str(out))
    (run / "ranker").mkdir(parents=True)
    (run / "ranker" / "model").write_text("trained")
    run_step("mari", "make_ranker", ["data", str(out)], SETTINGS, nodes=(2, 0, "x/gpu"))
    assert (out / "model").read_text() == "trained"
    assert not run.exists()
    assert api.asked == []


def test_nodes_that_share_no_volume_are_told(api, tmp_path, monkeypatch):
    monkeypatch.setenv("FEEDWORKS_WORKSPACE", str(tmp_path / "absent"))
    with pytest.raises(
        FeedworksError, match=r"nothing is mounted at .*absent; mount the claim feedworks-workspace"
    ):
        run_step("mari", "make_ranker", ["data", str(tmp_path / "out")], SETTINGS, nodes=(2, 0, "x/gpu"))


def test_a_wrong_setting_is_told_before_a_job_is_made(api, tmp_path):
    with pytest.raises(ConfigError, match="nope"):
        run_step(
            "mari",
            "make_ranker",
            ["data", str(tmp_path / "out")],
            ("tiny", ["nope=1"]),
            nodes=(2, 0, "x/gpu"),
        )
    assert api.asked == []


def test_a_job_that_starts_again_after_its_end_does_nothing(tmp_path):
    """A node that fails in its last moment has all nodes start again, when the result is there."""
    command = [
        sys.executable,
        "-m",
        "feedworks.launch",
        "--preset=tiny",
        "mari",
        "make_ranker",
        "x",
        str(tmp_path),
    ]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "make_ranker: already done\n")


def test_a_volume_that_takes_nothing_is_told_before_machines_are_asked_for(api, tmp_path, monkeypatch):
    monkeypatch.setenv("FEEDWORKS_WORKSPACE", str(tmp_path))
    (tmp_path / "runs").write_text("no folder")
    with pytest.raises(FeedworksError, match=r"cannot make .*runs.*; let user \d+ write on the volume at"):
        run_step("mari", "make_ranker", ["data", str(tmp_path / "out")], SETTINGS, nodes=(2, 0, "x/gpu"))
    assert api.asked == []


@pytest.mark.parametrize(
    ("nodes", "said"),
    [((0, 0, "x/gpu"), "num_nodes=0: expected at least 1"), ((1, 8, "x/gpu"), "one takes num_gpus")],
)
def test_machines_that_make_no_sense_train_nothing(tmp_path, nodes, said):
    with pytest.raises(ConfigError, match=said):
        run_step("mari", "make_ranker", ["data", str(tmp_path / "out")], SETTINGS, nodes=nodes)
