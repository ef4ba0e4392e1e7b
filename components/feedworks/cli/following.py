"""A run of Kubeflow Pipelines as it goes on: states of its tasks, and why one of them failed or waits."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from feedworks.cli.kfp_api import Api
from feedworks.errors import FeedworksError

POLL_S = 5.0
LOST_S = 120.0  # that the API may be away in the middle of a run: a forwarded port breaks now and then
MAX_LINES = 5
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED", "ERROR")
_FAILED = ("Failed", "Error")
_UNFINISHED = ("Pending", "Running", "")
_POD = re.compile(r"\.([^.]+)\.executor(?:\((\d+)\))?$|\.([^.]+)-driver(?:\((\d+)\))?$")
_ITERATION = re.compile(r"\((\d+):[^)]*\)")
_ERROR_LINE = re.compile(r"^([\w.]+\.)?\w*(Error|Exception|Interrupt|Exit)\b.*")
_MENDS = (
    (r"Insufficient (cpu|memory)", "no node has so much of it free; see --cpu, --memory"),
    (r"Insufficient \S*/\S+", "no node has so many free GPUs of that type; see --gpus, --gpu-type"),
    (r"didn't match|untolerated taint", "see --node-selector, --gpu-node-selector, --toleration"),
    (r"persistentvolumeclaim|unbound|FailedMount", "see --workspace-pvc"),
    (r"ImagePull|ErrImage|InvalidImageName", "build and push the images that the pipeline names"),
    (r"[Nn]o space left|Errno 28|ENOSPC|ephemeral-storage", "make room on the volume, then retry the run"),
    (r"OOMKilled|exit code 137", "it needs more memory: see --memory, or what pipelines/*.py asks for"),
    (r"CUDA device|accelerator=cuda", "see --gpus, or use a GPU image"),
    (r"longer than the specified deadline", "it needs more hours than pipelines/*.py asks for"),
)


class Task(NamedTuple):
    """One task of a run.

    Attributes:
        name: as in the pipeline, with the number of the turn in loops.
        state: of Argo: Pending, Running, Succeeded, Failed, Error, Skipped (a reused result) or
            Omitted; Retried waits for its next try.
        message: why it waits or failed; empty where unknown.
        pods: names under which the API may know the log of its last try.
    """

    name: str
    state: str
    message: str = ""
    pods: tuple[str, ...] = ()


def follow(api: Api, run_id: str, *, patience_s: float = 900.0, poll_s: float = POLL_S) -> None:
    """Wait for the end of a run; print to stderr what its tasks do.

    Args:
        api: of the cluster.
        run_id: of the run.
        patience_s: how long a task may wait for a node, an image or a volume before the wait is given up.
        poll_s: time between two looks.

    Raises:
        FeedworksError: the run failed, with the task's name and message; a task waits for longer than
            `patience_s`, or the API is away for longer than `LOST_S`. The latter two leave the run as it is.
        KeyboardInterrupt: Ctrl-C leaves the run, too, and says how to stop it.
    """
    try:
        ended, tasks = _watch(api, run_id, patience_s, poll_s)
    except KeyboardInterrupt:
        click.echo(f"the run goes on; {_how_to_stop(api, run_id)}", err=True)
        raise
    if ended != "SUCCEEDED":
        raise FeedworksError(f"run {run_id} {ended.lower()}{_why(api, run_id, tasks)}")


def _watch(api: Api, run_id: str, patience_s: float, poll_s: float) -> tuple[str, list[Task]]:
    said: dict[str, tuple[str, str]] = {}
    since: dict[str, float] = {}
    seen_s = time.monotonic()
    while True:
        try:
            run = api.get(f"/apis/v2beta1/runs/{run_id}")
            tasks = _tasks(api, run_id, run)
            seen_s = time.monotonic()
        except FeedworksError:
            if time.monotonic() - seen_s > LOST_S:
                raise
            time.sleep(poll_s)
            continue
        for task in tasks:
            if said.get(task.name) != task[1:3]:
                click.echo(
                    f"  [{task.name}] {task.state.lower()}{task.message and ': '}{task.message}", err=True
                )
            said[task.name] = task[1:3]
        state = str(run.get("state", ""))
        if state in _ENDED:
            return state, tasks
        _give_up_on_waiting(api, run_id, tasks, since, patience_s)
        time.sleep(poll_s)


def _give_up_on_waiting(
    api: Api, run_id: str, tasks: list[Task], since: dict[str, float], patience_s: float
) -> None:
    for task in tasks:
        reason = task.message.partition(":")[0] if task.state == "Pending" else ""
        if not reason or reason in ("PodInitializing", "ContainerCreating"):
            since.pop(task.name, None)
            continue
        if time.monotonic() - since.setdefault(task.name, time.monotonic()) > patience_s:
            raise FeedworksError(
                f"task {task.name} of run {run_id} cannot start: {with_mend(task.message)}. "
                f"The run goes on waiting; {_how_to_stop(api, run_id)}"
            )


def _tasks(api: Api, run_id: str, run: dict[str, Any]) -> list[Task]:
    """Return the tasks of a run: from Argo's workflow, which has messages, else the API's own list."""
    try:
        runtime = api.get(f"/apis/v1beta1/runs/{run_id}").get("pipeline_runtime") or {}
        workflow = json.loads(runtime.get("workflow_manifest") or "{}")
    except (FeedworksError, ValueError):
        workflow = {}
    found = list(_of_workflow(workflow))
    if found:
        return found
    details = (run.get("run_details") or {}).get("task_details") or []
    return [
        Task(str(detail["display_name"]), str(detail.get("state", "")).capitalize())
        for detail in details
        if not re.fullmatch(r"root|executor.*|.*-driver|iteration-.*|", str(detail.get("display_name", "")))
    ]


def _of_workflow(workflow: dict[str, Any]) -> Iterator[Task]:
    tries: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for node in ((workflow.get("status") or {}).get("nodes") or {}).values():
        name = str(node.get("name", ""))
        if (match := _POD.search(name)) and (match.group(1) or node.get("phase") in _FAILED):
            number = int(match.group(2) or match.group(4) or -1)
            tries.setdefault(re.sub(r"\(\d+\)$", "", name), []).append((number, node))
    for path, nodes in sorted(tries.items(), key=lambda item: str(item[1][0][1].get("startedAt", ""))):
        turn = "".join(f"[{number}]" for number in _ITERATION.findall(path))
        match = _POD.search(path)
        assert match
        name = f"{match[1]}{turn}" if match[1] else f"{match[3]}{turn} (its driver)"
        # Several tries have a node for all of them, too, without a number.
        whole = str(min(nodes, key=lambda pair: pair[0])[1].get("phase", ""))
        last = max(nodes, key=lambda pair: pair[0])[1]
        state = str(last.get("phase", "")) if whole in _UNFINISHED else whole
        if whole in _UNFINISHED and state in _FAILED:
            state = "Retried"
        message = "" if state == "Skipped" else " ".join(str(last.get("message") or "").split())
        yield Task(name, state, message, _pod_names(workflow, last))


def _pod_names(workflow: dict[str, Any], node: dict[str, Any]) -> tuple[str, ...]:
    # Argo names a pod after workflow, template and the end of the node's id; in earlier versions, by the id.
    node_id = str(node.get("id", ""))
    prefix = f"{(workflow.get('metadata') or {}).get('name', '')}-{node.get('templateName', '')}"
    return f"{prefix[:252]}-{node_id.rpartition('-')[2]}", node_id


def _why(api: Api, run_id: str, tasks: list[Task]) -> str:
    failed = [task for task in tasks if task.state in _FAILED]
    if not failed:
        return "; the API tells no failed task, look at the run in its UI"
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    said = [part for part in (failed[0].message, _end_of_log(api, run_id, failed[0])) if part]
    reason = with_mend("; ".join(said) or "the API tells no message, look at its log in the UI")
    return f": task {failed[0].name}{others}: {reason}"


def _end_of_log(api: Api, run_id: str, task: Task) -> str:
    for pod in task.pods:
        try:
            text = api.text(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log")
        except FeedworksError:
            continue
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines or "error_message" in lines[-1]:
            continue
        errors = [line for line in lines if _ERROR_LINE.match(line)]
        return errors[-1] if errors else " | ".join(lines[-MAX_LINES:])
    return ""


def with_mend(message: str) -> str:
    """Return what Kubernetes says of a task, and each mend that is known."""
    return "; ".join([message, *(mend for pattern, mend in _MENDS if re.search(pattern, message))])


def _how_to_stop(api: Api, run_id: str) -> str:
    return f"stop it by `curl -X POST {api.host.rstrip('/')}/apis/v2beta1/runs/{run_id}:terminate`"
