"""Training pods go where the task that launches them was sent."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import yaml

from feedworks.distributed.cluster import Cluster
from feedworks.distributed.place import Place, own_name, place_of
from feedworks.distributed.trainjob import NODE, VOLUME, Nodes, build
from feedworks.distributed.watching import Limits, patiently
from feedworks.errors import FeedworksError
from feedworks.launch import run_step

from ...manifests.crds import problems
from ...manifests.rendered import MANIFESTS
from .api import Api

SETTINGS = ("tiny", ["training.accelerator=cpu"])
TOKEN = {"secretKeyRef": {"key": "HF_TOKEN", "name": "team-secret", "optional": True}}
ADDED = {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}
TAINT = {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}
RUNTIME = MANIFESTS / "components" / "trainer" / "runtime.yaml"


def task_pod(mount: str = "/workspace") -> dict[str, Any]:
    """A pod as Kubeflow Pipelines makes it for a task of ours, and Kubernetes completes it."""
    main = {
        "name": "main",
        "image": "feedworks/python-gpu:0.1.0",
        "env": [
            {"name": "HF_TOKEN", "valueFrom": TOKEN},
            {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "OTHER", "valueFrom": {"secretKeyRef": {"key": "other", "name": "kfp"}}},
        ],
        "volumeMounts": [
            {"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
            {"name": "team-claim", "mountPath": mount},
        ],
    }
    return {
        "metadata": {"name": "task", "labels": {}},
        "spec": {
            "nodeSelector": {"pool": "h100"},
            "tolerations": [TAINT, ADDED],
            "containers": [{"name": "wait", "image": "argoexec"}, main],
            "volumes": [
                {"name": "kube-api-access", "projected": {}},
                {"name": "team-claim", "persistentVolumeClaim": {"claimName": "team"}},
            ],
        },
        "status": {"phase": "Running"},
    }


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("FEEDWORKS_WORKSPACE", str(tmp_path))
    return tmp_path


def test_what_a_pod_was_told_is_found(workspace):
    assert place_of(task_pod(f"{workspace}/")) == Place(
        node_selector={"pool": "h100"},
        tolerations=[TAINT],
        claim="team",
        secrets=[{"name": "HF_TOKEN", "valueFrom": TOKEN}],
    )


def test_a_claim_that_lies_elsewhere_is_not_the_shared_one(workspace):
    assert place_of(task_pod(f"{workspace}/data")).claim == ""


def test_nothing_is_known_of_a_process_outside_of_a_cluster():
    assert place_of(None) == Place()


def test_kubeflow_says_the_name_of_the_pod_that_a_host_name_may_cut(monkeypatch):
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    assert own_name() == socket.gethostname()
    monkeypatch.setenv("KFP_POD_NAME", "ksa-x7k2p-system-container-impl-1234567890")
    assert own_name() == "ksa-x7k2p-system-container-impl-1234567890"


def launched(api: Api, folder, nodes: tuple[int, int, str]) -> dict[str, Any]:
    """The TrainJob of a task whose cluster fails every job at once."""
    made = []

    def fail() -> None:
        for name, job in api.jobs.items():
            made.append(job)
            api.finish(name, "Failed", "FailedJobs", "no such node")

    api.step = fail
    (folder / "data").mkdir()
    with pytest.raises(FeedworksError, match="no such node"):
        run_step("mari", "make_ranker", [str(folder / "data"), str(folder / "out")], SETTINGS, nodes=nodes)
    return made[0]


def pod_patch(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == NODE
    return replicated["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("nodes", "tolerated"),
    [
        ((2, 0, "x.com/gpu"), [TAINT]),
        ((2, 4, "x.com/gpu"), [TAINT, {"key": "x.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]),
    ],
)
def test_the_pods_of_a_training_go_where_its_task_is(api, workspace, monkeypatch, nodes, tolerated):
    monkeypatch.setenv("KFP_POD_NAME", "task")
    api.pods["task"] = task_pod(str(workspace))
    job = launched(api, workspace, nodes)
    assert pod_patch(job) == {
        "nodeSelector": {"pool": "h100"},
        "tolerations": tolerated,
        "volumes": [{"name": VOLUME, "persistentVolumeClaim": {"claimName": "team"}}],
    }
    assert {"name": "HF_TOKEN", "valueFrom": TOKEN} in job["spec"]["trainer"]["env"]
    assert problems(job) == []


def test_outside_of_a_cluster_they_go_where_the_runtime_says(api, workspace, monkeypatch):
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    assert "runtimePatches" not in launched(api, workspace, (2, 0, "x/gpu"))["spec"]


def test_an_unknown_field_of_the_patch_is_refused():
    job = build("x", [], Nodes(num_nodes=2), namespace="x", labels={}, limits={}, place=Place(claim="team"))
    assert problems(job) == []
    pod_patch(job)["hostPID"] = True
    assert any("hostPID" in each for each in problems(job))


def test_the_runtime_has_what_the_patch_names():
    """A patch of another name would be a new job, which Trainer refuses, or a second volume."""
    (job,) = yaml.safe_load(RUNTIME.read_text())["spec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert job["name"] == NODE
    assert [each["name"] for each in pod["containers"]] == [NODE]
    assert VOLUME in {each["name"] for each in pod["volumes"] if "persistentVolumeClaim" in each}


def test_an_api_that_is_busy_is_asked_again(api, workspace):
    api.pods["task"] = task_pod(str(workspace))
    api.refusals[("GET", "/pods")] = (503, "starting", "ServiceUnavailable")
    cluster = Cluster()

    def ask() -> dict[str, Any] | None:
        if len(api.asked) == 2:
            api.refusals.clear()
        return cluster.pod("task")

    found = patiently(ask, Limits(outage_s=30, poll_s=0.01))
    assert found is not None
    assert found["metadata"]["name"] == "task"
    assert len(api.asked) == 3
