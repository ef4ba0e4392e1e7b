"""TrainJobs of the launcher at a real API server: taken, refused, cancelled. No controller runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from feedworks import images
from feedworks.distributed.cluster import Cluster
from feedworks.distributed.launcher import launch_words
from feedworks.distributed.place import Place
from feedworks.distributed.trainjob import Nodes, build
from feedworks.distributed.watching import Limits, run_job
from feedworks.errors import FeedworksError

from ..manifests.crds import FOLDER
from ..manifests.rendered import kustomization_with, of_kind, render
from . import server
from .conftest import OURS, STRANGER, Say
from .jobs import NOBODY, Workplace
from .kubectl import Object, apply, get, items, kubectl, remove, wait_for
from .papers import Papers
from .tasks import Task, executor_input
from .volumes import LABEL

pytestmark = [pytest.mark.kind, pytest.mark.timeout(600), pytest.mark.usefixtures("manifests")]

GROUP = "trainer.kubeflow.org/v1alpha1"
JOBS = "trainjobs.trainer.kubeflow.org"
TASK = "two-nodes"
NODES = {"kubernetes.io/os": "linux"}
TAINT = {"key": "feedworks/tests", "operator": "Exists", "effect": "NoSchedule"}
TOKEN = {"secretKeyRef": {"name": "feedworks-tasks", "key": "HF_TOKEN", "optional": True}}
DEFINITIONS = sorted(FOLDER.glob("*.yaml"))


def train_job(name: str = "tests", namespace: str = OURS, **trainer: Any) -> Object:
    """A TrainJob as the launcher builds it, perhaps with other fields."""
    words = launch_words("mari", "make_ranker", ["/workspace/data", "/workspace/ranker"], ("tiny", []))
    limits = {"cpu": "1", "memory": "1Gi"}
    place = Place(node_selector={"pool": "a"}, tolerations=[{"key": "a", "operator": "Exists"}], claim="a")
    job = build(name, words, Nodes(num_nodes=2), namespace=namespace, labels={}, limits=limits, place=place)
    job["spec"]["trainer"] |= trainer
    return job


def test_a_cluster_without_trainer_is_told(left_out: Say) -> None:
    if server.kinds(GROUP):
        left_out("a cluster that knows no TrainJobs: this one does")
        pytest.skip("TrainJobs are known")
    with pytest.raises(FeedworksError, match=r"knows no TrainJob \(.*\): install Kubeflow Trainer v2"):
        Cluster(OURS).create(train_job())


@pytest.fixture(scope="module")
def definitions(left_out: Say, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The definitions of Trainer and the runtime of the manifests, for as long as these tests run."""
    if server.kinds(GROUP):
        pytest.skip("TrainJobs are known: a controller may run them")
    if not DEFINITIONS:
        left_out(f"TrainJobs: there are no definitions of them in {FOLDER.name}")
        pytest.skip("no definitions of TrainJobs")
    left_out("the controller of Kubeflow Trainer: TrainJobs are taken and removed, nothing runs their pods")
    for path in DEFINITIONS:
        # Rules in CEL are newer than some servers; those leave them out.
        kubectl("create", "--validate=false", "-f", str(path))
    try:
        wait_for(_are_served, "the definitions", within_s=60, namespace=OURS)
        folder = kustomization_with(tmp_path_factory.mktemp("trainer"), ["trainer", "images"])
        apply(of_kind(render(folder), "ClusterTrainingRuntime"))
        yield
    finally:
        for path in DEFINITIONS:
            kubectl("delete", "--ignore-not-found", "-f", str(path), within_s=180)
        server.kinds.cache_clear()


def _are_served() -> bool | None:
    server.kinds.cache_clear()
    return {"TrainJob", "TrainingRuntime", "ClusterTrainingRuntime"} <= server.kinds(GROUP) or None


@pytest.mark.usefixtures("definitions")
def test_the_server_keeps_every_field_of_a_train_job_and_of_the_runtime(tmp_path: Any) -> None:
    """A field that the definition does not know would be dropped."""
    job = train_job("kept")
    cluster = Cluster(OURS)
    assert cluster.create(job)
    assert not cluster.create(job), "one of its name is there"
    try:
        found = cluster.job("kept")
        assert found is not None
        assert _missing(job["spec"], found["spec"]) == []
    finally:
        cluster.delete("kept")
    folder = kustomization_with(tmp_path, ["trainer", "images"])
    (runtime,) = of_kind(render(folder), "ClusterTrainingRuntime")
    kept = get("clustertrainingruntime", "feedworks-torch")
    assert _missing(runtime["spec"], kept["spec"]) == []


def train_jobs() -> list[Object]:
    """Those that are not being deleted, for which a collector may take half a minute."""
    return [each for each in items(JOBS, namespace=OURS) if "deletionTimestamp" not in each["metadata"]]


def _missing(wanted: Any, found: Any, path: str = "spec") -> list[str]:
    """What is in one object and not in the other."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        parts = [(f"{path}.{key}", value, found.get(key)) for key, value in wanted.items()]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        parts = [(f"{path}[{n}]", *pair) for n, pair in enumerate(zip(wanted, found, strict=True))]
    else:
        return [] if str(wanted) == str(found) else [f"{path}: {wanted!r} became {found!r}"]
    return [each for name, one, other in parts for each in _missing(one, other, name)]


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize(
    ("trainer", "said"),
    [({"numNodes": "two"}, r"422 .*numNodes.*"), ({"env": [{"value": "1"}]}, r"422 .*env.*name.*")],
)
def test_a_train_job_that_does_not_fit_is_told(trainer: Object, said: str) -> None:
    with pytest.raises(FeedworksError, match=rf"cannot create TrainJob tests .*: {said}") as caught:
        run_job(Cluster(OURS), train_job(**trainer))
    assert "the object does not fit this cluster's TrainJob" in str(caught.value)
    assert train_jobs() == []


@pytest.mark.usefixtures("definitions")
def test_a_quota_is_told() -> None:
    """Used up, or not counted yet, which a server does minutes after it learnt a definition."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": STRANGER},
        "spec": {"hard": {f"count/{JOBS}": "0"}},
    }

    def refused() -> str | None:
        # A server that has not heard of the quota takes the job, which no controller starts then.
        with pytest.raises(FeedworksError) as caught:
            run_job(Cluster(STRANGER), train_job(namespace=STRANGER), Limits(pending_s=1, poll_s=0.5))
        return str(caught.value) if "forbidden: " in str(caught.value) else None

    apply([quota])
    try:
        said = wait_for(refused, "a quota", within_s=60, namespace=STRANGER)
        assert " quota: none" in said
        assert said.endswith("raise the namespace's quota, or wait until others are done")
    finally:
        remove("resourcequota", "none", namespace=STRANGER)


@pytest.mark.usefixtures("definitions")
def test_a_cluster_without_a_controller_is_told_and_nothing_stays() -> None:
    with pytest.raises(
        FeedworksError, match=r"0 of 2 nodes run .*is the controller of Kubeflow Trainer running"
    ):
        run_job(Cluster(OURS), train_job(), Limits(pending_s=2, poll_s=0.5))
    assert train_jobs() == []


@pytest.fixture(scope="module")
def ranker(paper: Papers, definitions: None) -> Task:
    return paper("mari").tasks["make-ranker"]


def launches(task: Task, namespace: str, account: str, claim: str) -> None:
    """Start a Job of a training task as Kubeflow would on two nodes: with an account, and the workspace."""
    told = executor_input(task.command)
    told["inputs"]["parameterValues"]["num_nodes"] = 2
    told["inputs"]["artifacts"]["candidates"]["artifacts"][0]["uri"] = "/workspace/candidates"
    told["outputs"]["outputFile"] = "/tmp/out/executor_output.json"
    told["outputs"]["artifacts"]["ranker"]["artifacts"][0]["uri"] = "/tmp/out/ranker"
    place = task.command.index("--executor_input") + 1
    command = [*task.command[:place], json.dumps(told), *task.command[place + 1 :]]
    container = {
        "name": "main",
        "image": task.image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "env": [{"name": "HF_TOKEN", "valueFrom": TOKEN}],
        "volumeMounts": [{"name": "shared", "mountPath": "/workspace"}],
    }
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": account,
        "securityContext": dict(NOBODY),
        "nodeSelector": NODES,
        "tolerations": [TAINT],
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}],
    }
    metadata = {"name": TASK, "namespace": namespace, "labels": {LABEL: "task"}}
    # The label of pods of pipelines: where policies are enforced, they may reach the API server.
    template = {"metadata": {"labels": {"workflows.argoproj.io/workflow": "tests"}}, "spec": spec}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}
    apply([job | {"spec": {"backoffLimit": 0, "template": template}}])


def patched(job: Object) -> Object:
    """What a TrainJob says of its pods: what the task's own was told, without what the server added."""
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: Object = replicated["template"]["spec"]["template"]["spec"]
    return pod


def test_a_task_makes_a_train_job_and_a_cancelled_one_removes_it(ranker: Task, work: Workplace) -> None:
    launches(ranker, OURS, "feedworks-pipeline", "feedworks-workspace")
    try:
        found = wait_for(
            lambda: next(iter(train_jobs()), None),
            "a TrainJob",
            within_s=120,
            namespace=OURS,
            selector=f"job-name={TASK}",
        )
        assert found["metadata"]["name"].startswith("mari-make-ranker-")
        assert found["spec"]["runtimeRef"]["name"] == "feedworks-torch"
        trainer = found["spec"]["trainer"]
        assert (trainer["image"], trainer["numNodes"]) == (images.CPU, 2)
        assert "/workspace/candidates" in trainer["args"]
        assert {"name": "HF_TOKEN", "valueFrom": TOKEN} in trainer["env"]
        assert patched(found) == {
            "nodeSelector": NODES,
            "tolerations": [TAINT],
            "volumes": [{"name": "workspace", "persistentVolumeClaim": {"claimName": "feedworks-workspace"}}],
        }
        ours = Workplace(OURS, work.path, images.CPU)
        (pod,) = ours.pods(TASK)
        # As Argo ends a task: SIGTERM to all its processes; the shell, the first one, takes none here.
        name = pod["metadata"]["name"]
        kubectl("exec", name, "--", "sh", "-c", "kill -TERM -1", namespace=OURS, check=False)
        succeeded, said = ours.end(TASK, within_s=60)
        assert not succeeded
        assert f"TrainJob {found['metadata']['name']}: deleted" in said
        assert train_jobs() == []
    finally:
        remove("job", TASK, namespace=OURS)


def test_an_account_without_rights_is_told(ranker: Task, work: Workplace) -> None:
    launches(ranker, work.namespace, "default", "work")
    try:
        succeeded, said = work.end(TASK, within_s=120)
        assert not succeeded
        error = said.strip().splitlines()[-1]
        assert f"cannot read pod {TASK}-" in error
        assert error.endswith("the account may not: bind the role feedworks-pipeline of manifests/ to it")
    finally:
        remove("job", TASK, namespace=work.namespace)
