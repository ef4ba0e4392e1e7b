"""A run that is followed: what Argo says of its tasks, through an HTTP server that speaks the API."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from feedworks.cli.following import follow
from feedworks.cli.kfp_api import Api
from feedworks.errors import FeedworksError

from .conftest import Command, command_line, environment
from .kfp_stub import KfpStub, kfp_stub

NAME = "recochain-x7k2p"


def workflow(**tasks: tuple[str, str] | list[tuple[str, str]]) -> dict[str, Any]:
    """Return Argo's record of a run: for each task its phase and message, or those of its tries."""
    nodes: dict[str, Any] = {NAME: {"name": NAME, "type": "DAG", "phase": "Running", "id": NAME}}

    def add(path: str, kind: str, phase: str, message: str = "") -> None:
        node = {"id": f"{NAME}-{len(nodes)}", "name": f"{NAME}.{path}", "type": kind, "phase": phase}
        template = {
            "templateName": "retry-system-container-impl",
            "startedAt": f"2026-01-01T00:00:{len(nodes):02}Z",
        }
        nodes[node["id"]] = node | template | ({"message": message} if message else {})

    for name, said in tasks.items():
        task = name.replace("_", "-")
        path = {"baseline": "root.for-loop-2.iteration-item(1:swa).train-baseline"}.get(name, f"root.{task}")
        if name == "driver":
            add("root.package-driver", "Pod", *said)  # type: ignore[arg-type]
            continue
        add(f"{path}-driver", "Pod", "Succeeded")
        tries = said if isinstance(said, list) else [said]
        if len(tries) > 1:
            add(
                f"{path}.executor",
                "Retry",
                "Failed" if tries[-1][0] == "Failed" and len(tries) > 2 else "Running",
            )
        for number, (phase, message) in enumerate(tries):
            add(f"{path}.executor({number})" if len(tries) > 1 else f"{path}.executor", "Pod", phase, message)
    return {"metadata": {"name": NAME}, "status": {"nodes": nodes}}


def failure(api: KfpStub, **options: float) -> str:
    with pytest.raises(FeedworksError) as caught:
        follow(Api(api.address, 5.0), "run-1", **({"poll_s": 0.01} | options))
    (line,) = str(caught.value).splitlines()
    return line


def test_a_run_that_succeeds_says_what_its_tasks_do(capsys: pytest.CaptureFixture[str]) -> None:
    with kfp_stub() as api:
        api.run = [{"state": "PENDING"}, {"state": "RUNNING"}, {"state": "RUNNING"}, {"state": "SUCCEEDED"}]
        api.workflow = [
            {},
            workflow(prepare=("Pending", "PodInitializing")),
            workflow(prepare=("Succeeded", ""), train=[("Failed", "Error (exit code 1)"), ("Running", "")]),
            workflow(prepare=("Skipped", "when"), train=("Succeeded", ""), baseline=("Succeeded", "")),
        ]
        follow(Api(api.address), "run-1", poll_s=0.01)
    assert capsys.readouterr().err.splitlines() == [
        "  [prepare] pending: PodInitializing",
        "  [prepare] succeeded",
        "  [train] running",
        "  [prepare] skipped",
        "  [train] succeeded",
        "  [train-baseline[1]] succeeded",
    ]


@pytest.mark.parametrize(
    ("message", "log", "said"),
    [
        (
            "Error (exit code 1)",
            "fit\nTraceback (most recent call last):\n  File x\n"
            "feedworks.errors.DataError: items: vector has 1 NaN\nF0101 main.go:49] exit status 1\n",
            "task train: Error (exit code 1); feedworks.errors.DataError: items: vector has 1 NaN",
        ),
        (
            "Error (exit code 1)",
            "OSError: [Errno 28] No space left on device: '/workspace/x'\n",
            "[Errno 28] No space left on device: '/workspace/x'; make room on the volume",
        ),
        (
            "Error (exit code 1)",
            "feedworks.errors.ConfigError: num_gpus=2, but torch sees 0 CUDA device(s) here\n",
            "0 CUDA device(s) here; see --gpus, or use a GPU image",
        ),
        (
            "OOMKilled (exit code 137)",
            "a\nb\n",
            "OOMKilled (exit code 137); a | b; it needs more memory: see --mem",
        ),
        ("Pod was active on the node longer than the specified deadline", "", "it needs more hours"),
        ("", "", "task train: the API tells no message"),
    ],
)
def test_a_failed_task_is_named_with_its_own_error(message: str, log: str, said: str) -> None:
    with kfp_stub() as api:
        api.run = [{"state": "FAILED"}]
        api.workflow = [workflow(prepare=("Succeeded", ""), train=("Failed", message))]
        api.logs = {f"{NAME}-retry-system-container-impl-4": log} if log else {}
        assert said in (line := failure(api))
    assert line.startswith("run run-1 failed: task train: ")


def test_the_last_try_speaks_and_its_log_may_be_under_an_older_name() -> None:
    tries = [("Failed", "first"), ("Failed", "second"), ("Failed", "Error (exit code 1)")]
    with kfp_stub() as api:
        api.run, api.workflow = [{"state": "FAILED"}], [workflow(train=tries, other=("Error", "evicted"))]
        api.logs = {f"{NAME}-5": "ValueError: the third\n", f"{NAME}-3": "ValueError: the first\n"}
        line = failure(api)
    assert "task train (and 1 more): Error (exit code 1); ValueError: the third" in line


def test_a_driver_that_fails_is_named() -> None:
    with kfp_stub() as api:
        api.run, api.workflow = [{"state": "FAILED"}], [workflow(driver=("Error", "no input parameter x"))]
        assert "task package (its driver): no input parameter x" in failure(api)


@pytest.mark.parametrize(
    ("message", "mend"),
    [
        ("Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "see --gpus, --gpu-type"),
        ("Unschedulable: 0/3 nodes are available: 3 Insufficient memory.", "see --cpu, --memory"),
        (
            "Unschedulable: 0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu.",
            "see --cpu, --memory; no node has so many free GPUs of that type; see --gpus",
        ),
        (
            "Unschedulable: 0/3 nodes are available: 1 Insufficient memory, 2 node(s) had untolerated taint",
            "see --cpu, --memory; see --node-selector, --gpu-node-selector, --toleration",
        ),
        (
            "Unschedulable: 0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
            "selector",
        ),
        ('Unschedulable: persistentvolumeclaim "feedworks-workspace" not found', "see --workspace-pvc"),
        (
            'ImagePullBackOff: Back-off pulling image "feedworks/python-gpu:0.1.0"',
            "build and push the images",
        ),
    ],
)
def test_a_task_that_cannot_start_is_given_up(message: str, mend: str) -> None:
    with kfp_stub() as api:
        api.run, api.workflow = [{"state": "RUNNING"}], [workflow(train=("Pending", message))]
        line = failure(api, patience_s=0.1)
    assert line.startswith(f"task train of run run-1 cannot start: {message}; ")
    assert mend in line
    assert (
        f"The run goes on waiting; stop it by `curl -X POST {api.address}/apis/v2beta1/runs/run-1:term"
        in line
    )


def test_a_task_that_starts_in_time_is_not_given_up() -> None:
    pending = ("Pending", "Unschedulable: 0/1 nodes are available")
    with kfp_stub() as api:
        api.run = [{"state": "RUNNING"}] * 12 + [{"state": "SUCCEEDED"}]
        api.workflow = [workflow(train=pending), workflow(train=("Pending", "ContainerCreating"))] * 6 + [{}]
        follow(Api(api.address), "run-1", poll_s=0.02, patience_s=0.1)


def test_without_the_workflow_the_states_of_the_api_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["root", "root-driver", "prepare-driver", "prepare", "executor", "executor(0)"]
    details = [{"display_name": name, "state": "SUCCEEDED"} for name in names]
    details.append({"display_name": "train", "state": "FAILED"})
    with kfp_stub() as api:
        api.run = [{"state": "FAILED", "run_details": {"task_details": details}}]
        api.wrong = {"/apis/v1beta1/": (404, "{}")}
        assert "task train: the API tells no message" in failure(api)
    assert capsys.readouterr().err.splitlines() == ["  [prepare] succeeded", "  [train] failed"]


@pytest.mark.parametrize("state", ["CANCELED", "SKIPPED"])
def test_a_run_that_is_stopped_ends_the_wait(state: str) -> None:
    with kfp_stub() as api:
        api.run = [{"state": state}]
        assert (
            failure(api)
            == f"run run-1 {state.lower()}; the API tells no failed task, look at the run in its UI"
        )


def test_an_api_that_is_away_for_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with kfp_stub() as api:
        api.run = [{"state": "SUCCEEDED"}]
        api.slow_s, api.wrong = {"/apis/v2beta1/runs": 0.3}, {"/apis/v1beta1/": (502, "")}
        follow(Api(api.address, 5.0), "run-1", poll_s=0.01)
        api.wrong = {"/apis/v2beta1/runs": (502, "<html>bad gateway</html>")}
        monkeypatch.setattr("feedworks.cli.following.LOST_S", 0.2)
        assert "failed: 502; try again" in failure(api)


def test_the_command_waits_and_fails_with_the_task(feedworks: Command, tmp_path: Path) -> None:
    words = ("submit", "recochain", "--wait", "--host")
    with kfp_stub() as api:
        api.run, api.workflow = [{"state": "SUCCEEDED"}], [workflow(train=("Succeeded", ""))]
        good = feedworks(*words, api.address, HOME=str(tmp_path))
        api.run, api.workflow = [{"state": "FAILED"}], [workflow(train=("Failed", "Error (exit code 1)"))]
        bad = feedworks(*words, api.address, HOME=str(tmp_path))
    assert good.returncode == 0, good.stderr
    assert good.stdout.splitlines()[-1] == "run run-1 of recochain succeeded"
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[-1] == "feedworks: run run-2 failed: task train: Error (exit code 1)"


def test_ctrl_c_leaves_the_run_and_says_how_to_stop_it(tmp_path: Path) -> None:
    with kfp_stub() as api:
        api.run, api.workflow = [{"state": "RUNNING"}], [workflow(train=("Running", ""))]
        process = subprocess.Popen(
            command_line("submit", "recochain", "--wait", "--host", api.address),
            cwd=tmp_path,
            env=environment(HOME=str(tmp_path)),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr
        deadline_s = time.monotonic() + 120
        while "[train] running" not in process.stderr.readline():
            assert process.poll() is None
            assert time.monotonic() < deadline_s
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert (
        f"the run goes on; stop it by `curl -X POST {api.address}/apis/v2beta1/runs/run-1:terminate`" in said
    )
