"""One step of a paper on several machines, from a task that only launches and watches it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from feedworks.distributed.cluster import Cluster
from feedworks.distributed.place import own_name, place_of
from feedworks.distributed.trainjob import Nodes, build, own_limits
from feedworks.distributed.watching import Limits, patiently, run_job
from feedworks.distributed.workspace import bring, make_folder, run_key, take, workspace
from feedworks.task_resources import THREADS

_MAX_NAME = 40


def run_on_nodes(
    paper: str,
    step: str,
    paths: Sequence[str],
    settings: tuple[str, Sequence[str]],
    nodes: Nodes,
    *,
    cluster: Cluster | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> None:
    """Run a training step under torchrun in a TrainJob, and bring its result.

    What is trained lies on the shared volume until the result is taken: after a failure or a kill the next
    try of the same task goes on where the training was.

    Args:
        paper: its name.
        step: a function of its steps that trains.
        paths: inputs and output of the step, as this task sees them.
        settings: name of a preset, and `key=value` overrides.
        nodes: how many machines and processes.
        cluster: instead of the one that this pod is in.
        limits: how long to wait.

    Raises:
        FeedworksError: see `feedworks.distributed.watching.run_job`; or the shared volume is missing.
    """
    preset, overrides = settings
    *inputs, out = map(Path, paths)
    key = run_key(paper, step, preset, overrides, str(out))
    run = workspace() / "runs" / key
    result = run / (out.name or "result")
    cluster = cluster or Cluster()
    make_folder(run)
    if not result.exists():  # by a launcher that was killed before it took it
        shared = [*bring(inputs, run), result]
        words = launch_words(paper, step, list(map(str, shared)), settings)
        labels = {"app.kubernetes.io/part-of": "feedworks", "feedworks/paper": paper, "feedworks/run": key}
        own_pod = patiently(lambda: cluster.pod(own_name()), limits)
        job = build(
            job_name(paper, step, key),
            words,
            nodes,
            namespace=cluster.namespace,
            labels=labels,
            limits=own_limits(processes=nodes.processes),
            # A process there has the cores of this one.
            variables={THREADS: os.environ[THREADS]} if THREADS in os.environ else {},
            place=place_of(own_pod),
        )
        run_job(cluster, job, limits)
    take(result, out)
    shutil.rmtree(run, ignore_errors=True)


def launch_words(
    paper: str, step: str, paths: Sequence[str], settings: tuple[str, Sequence[str]]
) -> list[str]:
    """Return the arguments of `feedworks.launch` for a step."""
    preset, overrides = settings
    return [f"--preset={preset}", *(f"--set={override}" for override in overrides), paper, step, *paths]


def job_name(paper: str, step: str, key: str) -> str:
    """Return a name that Kubernetes takes: lower case, begins with a letter, short enough for pods' names."""
    plain = re.sub("[^a-z0-9]+", "-", f"{paper}-{step}".lower()).strip("-")
    return f"{plain[: _MAX_NAME - len(key) - 1].rstrip('-')}-{key}"
