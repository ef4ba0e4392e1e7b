"""A TrainJob watched by the real client over HTTP: logs, failures, waits, refusals, cancelling, adoption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from feedworks.distributed.cluster import Cluster, UnreachableError
from feedworks.distributed.trainjob import Nodes, build
from feedworks.distributed.watching import Limits, run_job
from feedworks.errors import FeedworksError

from .api import Api

NAME = "mari-make-ranker-0123456789ab"
QUICK = Limits(pending_s=0.6, image_s=0.3, outage_s=0.6, gone_s=0.6, poll_s=0.02)
PATIENT = QUICK._replace(pending_s=60.0, outage_s=60.0)


def job():
    return build(NAME, ["--preset=tiny"], Nodes(num_nodes=2), namespace="feedworks", labels={}, limits={})


def start(limits: Limits = PATIENT) -> None:
    run_job(Cluster(), job(), limits)


REPORT = (
    "E1123 09:43 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) local_rank: 0",
    *["Traceback"] * 30,
)


def script(api: Api, *acts) -> None:
    """Let each act happen at a later look at the job."""
    left = list(acts)

    def step() -> None:
        if left and NAME in api.jobs and api.asked[-1].endswith("/trainjobs"):
            left.pop(0)()

    api.step = step


def test_a_job_that_ends_well_is_told_line_by_line_and_removed(api, capsys):
    pods: list[str] = []
    script(
        api,
        lambda: pods.extend(api.add_pods(NAME)),
        lambda: api.say(pods[0], "epoch 1", "epoch 1"),
        lambda: api.say(pods[1], "of the other node"),
        lambda: api.say(pods[0], "epoch 2"),
        lambda: (api.say(pods[0], "done"), api.finish(NAME, "Complete", "AllJobsCompleted", "well")),
    )
    start()
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"[node 0] {line}" for line in ("epoch 1", "epoch 1", "epoch 2", "done")]
    assert f"TrainJob {NAME}: created in namespace feedworks, 2 nodes" in said.err
    assert api.deleted == [NAME]


def test_a_failure_names_the_pod_that_failed_first_and_its_last_lines(api):
    def fail() -> None:
        first, second = api.add_pods(NAME)
        api.say(first, "connection closed by peer")
        api.say(second, "line one", "feedworks: the data ends here", *REPORT)
        api.end(first, 1, at="2026-01-01T00:00:09Z")
        api.end(second, 137, "OOMKilled", at="2026-01-01T00:00:05Z")
        api.finish(NAME, "Failed", "FailedJobs", "jobset failed due to one or more job failures")

    script(api, fail)
    with pytest.raises(FeedworksError) as caught:
        start()
    text = str(caught.value)
    first = f"TrainJob {NAME} failed (FailedJobs: jobset failed due to one or more job failures): "
    assert text.startswith(f"{first}pod {NAME}-node-0-1-a ended with code 137 (OOMKilled); its last lines:\n")
    assert text.splitlines()[1:] == ["  line one", "  feedworks: the data ends here"]
    assert api.deleted == [NAME]


def test_a_pod_that_is_gone_is_told_by_what_was_read_of_it(api):
    def fail() -> None:
        api.finish(NAME, "Failed", "FailedJobs", "")
        api.pods.clear()

    script(
        api,
        lambda: api.say(api.add_pods(NAME)[0], "the last of it"),
        lambda: api.end(f"{NAME}-node-0-0-a", 3),
        fail,
    )
    with pytest.raises(
        FeedworksError, match=r"ended with code 3 \(Error\); its last lines:\n  the last of it"
    ):
        start()


def test_a_restart_of_all_pods_is_followed(api, capsys):
    def again() -> None:
        api.pods.clear()
        api.say(api.add_pods(NAME, attempt="b")[0], "goes on at step 7")

    script(
        api,
        lambda: api.say(api.add_pods(NAME)[0], "step 7"),
        lambda: api.end(f"{NAME}-node-0-1-a", 137),
        again,
        lambda: api.finish(NAME, "Complete", "AllJobsCompleted", ""),
    )
    start()
    said = capsys.readouterr()
    assert said.out.splitlines() == ["[node 0] step 7", "[node 0] goes on at step 7"]
    assert "ended with code 137 (Error); the job may start it again" in said.err


IMAGE = 'Back-off pulling image "feedworks/python-cpu:0.1.0"'


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        (
            "ImagePullBackOff",
            IMAGE,
            "image feedworks/python-cpu:0.1.0 cannot be had: ImagePullBackOff: Back-off",
        ),
        ("ErrImagePull", "connection refused", "cannot be had: ErrImagePull: connection refused"),
        ("ErrImageNeverPull", "not present", "cannot be had: ErrImageNeverPull"),
        ("CreateContainerConfigError", 'secret "s" not found', "CreateContainerConfigError: secret"),
    ],
)
def test_a_container_that_cannot_start_says_why(api, reason, message, expected):
    script(api, lambda: [api.hold(pod, reason, message) for pod in api.add_pods(NAME, "Pending")])
    with pytest.raises(FeedworksError, match="0 of 2 nodes run after") as caught:
        start(QUICK)
    assert expected in str(caught.value)
    assert api.deleted == [NAME]


@pytest.mark.parametrize(
    "message",
    [
        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        "0/1 nodes are available: 1 pod has unbound immediate PersistentVolumeClaims.",
    ],
)
def test_a_pod_without_a_node_says_what_the_scheduler_says(api, message):
    def pend() -> None:
        first, second = api.add_pods(NAME, "Pending")
        api.pods[first]["status"]["phase"] = "Running"
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        api.pods[second]["status"]["conditions"] = [condition]

    script(api, pend)
    with pytest.raises(FeedworksError, match="1 of 2 nodes run after") as caught:
        start(QUICK)
    assert f"pod {NAME}-node-0-1-a: Unschedulable: {message}" in str(caught.value)


def test_no_controller_is_told(api):
    with pytest.raises(
        FeedworksError, match=r"0 pods were made: is the controller of Kubeflow Trainer running\?"
    ):
        start(QUICK)


def test_a_suspended_job_waits_for_its_queue(api, capsys):
    def suspend() -> None:
        api.jobs[NAME]["spec"]["suspend"] = True

    script(api, suspend)
    end_s = time.monotonic() + 3 * QUICK.pending_s
    step = api.step

    def later() -> None:
        step()
        if time.monotonic() > end_s:
            api.finish(NAME, "Complete", "AllJobsCompleted", "")

    api.step = later
    start(QUICK)
    assert "suspended: it waits for a queue" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "message", "reason", "mend"),
    [
        (422, 'TrainJob "x" is invalid: spec.trainer.numNodes', "Invalid", "install Kubeflow Trainer v2.3"),
        (400, 'strict decoding error: unknown field "spec.x"', "BadRequest", "does not fit this cluster"),
        (
            403,
            'trainjobs is forbidden: User "a" cannot create',
            "Forbidden",
            "bind the role feedworks-pipeline",
        ),
        (
            403,
            'trainjobs "x" is forbidden: exceeded quota: none, requested: count/trainjobs=1',
            "Forbidden",
            "raise the namespace's quota",
        ),
        (
            403,
            'admission webhook "validator.trainjob" denied the request: runtime not found',
            "Forbidden",
            "apply manifests/components/trainer",
        ),
        (
            500,
            'Internal error occurred: failed calling webhook "validator": connection refused',
            "InternalError",
            "see that Kubeflow Trainer runs",
        ),
        (404, "the server could not find the requested resource", "NotFound", "install Kubeflow Trainer v2"),
        (404, 'namespaces "feedworks" not found', "NotFound", "apply manifests/, which makes it"),
        (401, "Unauthorized", "Unauthorized", "log in again"),
        (302, "moved", "Found", "check that the address in KUBECONFIG"),
    ],
)
def test_a_refusal_is_one_line_with_its_reason_and_the_mend(api, code, message, reason, mend):
    api.refusals["POST", "/trainjobs"] = (code, message, reason)
    with pytest.raises(FeedworksError) as caught:
        start()
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"cannot create TrainJob {NAME} in namespace feedworks: {code} {message}; ")
    assert mend in line


def test_a_page_of_a_proxy_is_not_repeated(api):
    def answer(*_: object) -> tuple[int, str]:
        return 404, "<html>" + "x" * 999

    api._found = None
    api.server.RequestHandlerClass._found = answer
    with pytest.raises(FeedworksError, match="404 Not Found; the cluster knows no TrainJob"):
        start()


def test_an_api_that_is_not_there_is_told(api):
    api.close()
    with pytest.raises(UnreachableError, match=r"no Kubernetes API answers at http://127.0.0.1:.*refused"):
        start()


def test_a_short_outage_is_waited_out_and_a_long_one_is_an_error(api, capsys):
    def out() -> None:
        api.refusals["GET", "/trainjobs"] = (503, "etcd is down", "ServiceUnavailable")

    def back() -> None:
        api.refusals.clear()

    looks = {"number": 0}

    def step() -> None:
        looks["number"] += 1
        if looks["number"] == 2:
            api.refusals["GET", "/pods"] = (503, "etcd is down", "ServiceUnavailable")
        if looks["number"] == 6:
            back()
            api.finish(NAME, "Complete", "AllJobsCompleted", "")

    api.step = step
    start()
    assert "answers 503 etcd is down" in capsys.readouterr().err
    script(api, out)
    with pytest.raises(UnreachableError, match="answers 503 etcd is down"):
        start(QUICK)


def test_a_busy_api_is_asked_again_to_create(api, capsys):
    """As under a quota that two jobs change at once; it is no job of the same name."""
    conflict = 'Operation cannot be fulfilled on resourcequotas "jobs": the object has been modified'
    api.refusals["POST", "/trainjobs"] = (409, conflict, "Conflict")
    with pytest.raises(UnreachableError, match="answers 409 Operation cannot be fulfilled"):
        start(QUICK)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("has been modified; trying again")
    timer = threading.Timer(0.2, api.refusals.clear)
    timer.start()
    script(api, lambda: api.finish(NAME, "Complete", "AllJobsCompleted", ""))
    start()
    timer.join()
    assert api.deleted == [NAME]


def test_a_pod_whose_machine_is_gone_ends_no_training(api, capsys):
    def lose() -> None:
        api.refusals["GET", "/log"] = (500, "Get https://10.0.0.9:10250: no route to host", "InternalError")

    def restart() -> None:
        api.refusals.clear()
        api.pods.clear()
        api.say(api.add_pods(NAME, attempt="b")[0], "goes on at step 7")

    waits = [lambda: time.sleep(0.2)] * 5
    script(
        api,
        lambda: (api.say(api.add_pods(NAME)[0], "step 7"), lose()),
        *waits,
        restart,
        lambda: api.finish(NAME, "Complete", "AllJobsCompleted", ""),
    )
    start(QUICK._replace(pending_s=60.0))
    said = capsys.readouterr()
    assert said.out == "[node 0] goes on at step 7\n"
    assert "no route to host" in said.err
    api.pods.clear()
    script(
        api,
        lambda: api.say(api.add_pods(NAME)[0], "the last of it"),
        lambda: (api.end(f"{NAME}-node-0-0-a", 137), lose(), api.finish(NAME, "Failed", "Lost", "node lost")),
    )
    with pytest.raises(FeedworksError, match=r"Lost: node lost.* last lines:\n  step 7\n  the last of it"):
        start()


def test_lines_are_those_that_begin_with_a_time(api, capsys):
    """A bar moves within its line by carriage returns; other bytes than UTF-8 are told as such."""
    pods: list[str] = []
    script(
        api,
        lambda: pods.extend(api.add_pods(NAME)),
        lambda: api.say(pods[0], "10 %\r20 %", "a\x0cb \u2028c"),
        lambda: api.say(pods[0], "10 %\r20 %"),
        lambda: api.finish(NAME, "Complete", "AllJobsCompleted", ""),
    )
    start()
    said = capsys.readouterr().out
    assert said.split("\n") == [
        *(f"[node 0] {line}" for line in ("10 %\r20 %", "a\x0cb \u2028c", "10 %\r20 %")),
        "",
    ]


@pytest.mark.parametrize("page", ["<html>log in</html>", '{"kind": "TrainJ', "[]", "null", ""])
def test_an_answer_of_something_else_is_told(api, page):
    api.server.RequestHandlerClass._found = lambda *_: (200, page)
    with pytest.raises(UnreachableError, match=r"cannot create .* is no Kubernetes API, perhaps a proxy"):
        start()
    cluster = Cluster()
    for ask in (cluster.job, cluster.pods):
        with pytest.raises(UnreachableError, match="is no Kubernetes API"):
            ask(NAME)


def test_a_server_without_tls_is_told(api, tmp_path):
    path = api.kubeconfig(tmp_path)
    path.write_text(path.read_text().replace("http://", "https://"))
    with pytest.raises(FeedworksError, match=r"no TLS with https://127.0.0.1:.*in KUBECONFIG") as caught:
        start()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"a: [", b"- a", b"text", b"\xff\xfe\0", b"", b"clusters: []"])
def test_a_kubeconfig_that_is_none_is_told(api, tmp_path, content):
    api.kubeconfig(tmp_path).write_bytes(content)
    with pytest.raises(FeedworksError, match="several nodes need a Kubernetes cluster") as caught:
        Cluster()
    assert len(str(caught.value).splitlines()) == 1


def test_a_job_that_cannot_be_deleted_is_told(api, capsys):
    script(api, lambda: api.finish(NAME, "Complete", "AllJobsCompleted", ""))
    api.refusals["DELETE", NAME] = (403, "trainjobs is forbidden", "Forbidden")
    start()
    said = capsys.readouterr().err
    assert f"it may go on training until you delete it: kubectl -n feedworks delete trainjob {NAME}" in said


def test_a_job_whose_creation_is_broken_off_is_removed(api, monkeypatch):
    """Ctrl-C or SIGTERM may come when the API has made the job and its answer is on the way."""
    create = Cluster.create

    def interrupted(cluster, job):
        create(cluster, job)
        raise KeyboardInterrupt

    monkeypatch.setattr(Cluster, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start()
    assert api.deleted == [NAME]


def test_a_cluster_that_nobody_named_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(FeedworksError, match=r"several nodes need a Kubernetes cluster.*num_nodes=1"):
        Cluster()


def test_a_job_that_is_there_is_gone_on_with(api, capsys):
    """As a launcher finds it that was killed and started again."""
    api.jobs[NAME] = job()
    api.say(api.add_pods(NAME)[0], "step 1")
    script(api, lambda: None, lambda: api.finish(NAME, "Complete", "AllJobsCompleted", ""))
    start()
    said = capsys.readouterr()
    assert "there already; going on with it" in said.err
    assert said.out == "[node 0] step 1\n"
    assert api.deleted == [NAME]


def test_a_job_that_is_being_deleted_is_waited_for(api):
    api.jobs[NAME] = job()
    api.jobs[NAME]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    with pytest.raises(FeedworksError, match="is being deleted and does not go"):
        start(QUICK)
    assert NAME in api.jobs, "that of others stays"
    gone: list[bool] = []

    def step() -> None:
        if not gone:
            gone.append(api.jobs.pop(NAME) is not None)
        elif NAME in api.jobs:
            api.finish(NAME, "Complete", "AllJobsCompleted", "")

    api.step = step
    start()
    assert api.deleted == [NAME]


def test_a_job_that_somebody_deletes_is_told(api):
    script(api, lambda: api.add_pods(NAME), lambda: api.jobs.pop(NAME))
    with pytest.raises(FeedworksError, match="was deleted by somebody else"):
        start()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -9)]
)
def test_a_cancelled_launcher_removes_its_job_and_a_killed_one_leaves_it(api, number, code):
    command = [sys.executable, "-c", f"from {__name__.replace('tests.', 'tests.', 1)} import start; start()"]
    api.step = lambda: api.jobs and not api.pods and api.add_pods(NAME)
    root = Path(__file__).resolve().parents[3]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    with subprocess.Popen(
        command, env=env, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        give_up_s = time.monotonic() + 60
        while sum(each.endswith("/log") for each in list(api.asked)) < 2:
            assert process.poll() is None
            assert time.monotonic() < give_up_s
            time.sleep(0.02)
        process.send_signal(number)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert api.deleted == ([] if number == signal.SIGKILL else [NAME])
