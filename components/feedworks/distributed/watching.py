"""A TrainJob from its creation to its end: made or found, watched, told, and removed."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, NoReturn, TypeVar

from feedworks.distributed import pods
from feedworks.distributed.cluster import BusyError, Cluster, UnreachableError
from feedworks.errors import FeedworksError
from feedworks.progress import say

TERMINATED = 128 + signal.SIGTERM
AnswerT = TypeVar("AnswerT")


class Limits(NamedTuple):
    """How long to wait.

    Attributes:
        pending_s: for pods to run; a cluster may have to start machines first.
        image_s: for an image that cannot be had.
        outage_s: for an API that does not answer.
        gone_s: for an earlier job of the same name to be gone.
        poll_s: between looks.
    """

    pending_s: float = 1800.0
    image_s: float = 180.0
    outage_s: float = 300.0
    gone_s: float = 180.0
    poll_s: float = 2.0


def run_job(cluster: Cluster, job: dict[str, Any], limits: Limits = Limits()) -> None:  # noqa: B008
    """Create a TrainJob, or go on with one of its name, and wait for its end; it is deleted in any case.

    A launcher that was killed leaves its job; the next one with the same name takes it over.

    Args:
        cluster: where.
        job: see `feedworks.distributed.trainjob.build`.
        limits: how long to wait.

    Raises:
        FeedworksError: the API refuses or stays away, pods do not start, or the job failed: with the pod that
            failed first and what it printed last.
    """
    name = job["metadata"]["name"]
    ours = True
    with _ending_on_sigterm():
        try:
            try:
                _begin(cluster, job, limits)
            except FeedworksError as error:
                # An API that falls silent may have made it before; one that refuses has not.
                ours = isinstance(error, UnreachableError)
                raise
            _Watch(cluster, name, job["spec"]["trainer"]["numNodes"], limits).to_the_end()
        finally:
            # Also after Ctrl-C and SIGTERM: nobody would read what it goes on to train.
            if ours:
                _remove(cluster, name)


def _remove(cluster: Cluster, name: str) -> None:
    try:
        if cluster.delete(name):
            say(f"TrainJob {name}: deleted")
    except FeedworksError as error:
        by_hand = f"kubectl -n {cluster.namespace} delete trainjob {name}"
        say(f"TrainJob {name}: {error}; it may go on training until you delete it: {by_hand}")


def _begin(cluster: Cluster, job: dict[str, Any], limits: Limits) -> None:
    name = job["metadata"]["name"]
    give_up_s = time.monotonic() + limits.gone_s
    while not patiently(lambda: cluster.create(job), limits):
        there = cluster.job(name)
        if there is not None and "deletionTimestamp" not in there["metadata"]:
            say(f"TrainJob {name}: there already; going on with it")
            return
        if time.monotonic() > give_up_s:
            raise FeedworksError(
                f"an earlier TrainJob {name} is being deleted and does not go; see what holds it: "
                f"kubectl -n {cluster.namespace} get trainjob {name} -o yaml"
            )
        time.sleep(limits.poll_s)
    nodes = job["spec"]["trainer"]["numNodes"]
    say(f"TrainJob {name}: created in namespace {cluster.namespace}, {nodes} nodes")


def patiently(ask: Callable[[], AnswerT], limits: Limits) -> AnswerT:
    """Return what the API answers, as soon as it can."""
    give_up_s = time.monotonic() + limits.outage_s
    told: set[str] = set()
    while True:
        try:
            return ask()
        except BusyError as error:
            if time.monotonic() > give_up_s:
                raise
            if str(error) not in told:
                say(f"{error}; trying again")
            told.add(str(error))
        time.sleep(limits.poll_s)


class _Watch:
    """Looks at a job again and again, and prints what its first node prints."""

    def __init__(self, cluster: Cluster, name: str, num_nodes: int, limits: Limits) -> None:
        self._cluster = cluster
        self._name = name
        self._num_nodes = num_nodes
        self._limits = limits
        self._reader = pods.LogReader(cluster)
        self._told: set[str] = set()
        self._failed: pods.Ended | None = None
        self._running_s = self._answered_s = time.monotonic()

    def to_the_end(self) -> None:
        while True:
            try:
                if self._look():
                    return
                self._answered_s = time.monotonic()
            except UnreachableError as error:
                self._tell(str(error))
                if time.monotonic() - self._answered_s > self._limits.outage_s:
                    raise
            time.sleep(self._limits.poll_s)

    def _look(self) -> bool:
        job = self._cluster.job(self._name)
        if job is None:
            raise FeedworksError(f"TrainJob {self._name} was deleted by somebody else; start the task again")
        found = self._cluster.pods(self._name)
        self._print(found)
        ended = pods.failed(found)
        if ended is not None:
            self._failed = ended
        ends = {each["type"]: each for each in _conditions(job) if each["status"] == "True"}
        if "Complete" in ends:
            return True
        if "Failed" in ends:
            raise self._error(ends["Failed"])
        if ended is not None:
            self._tell(f"{ended}; the job may start it again")
        self._require_start(job, found)
        return False

    def _print(self, found: list[Any]) -> None:
        first = [pod for pod in found if pods.index(pod) == 0 and pod.status.phase != "Pending"]
        if first:
            try:
                lines = self._reader.new_lines(first[-1].metadata.name)
            except UnreachableError as error:
                # The API asks the pod's machine, which may be gone for good: the job goes on without it.
                self._tell(str(error))
                return
            for line in lines:
                print(f"[node 0] {line}", flush=True)

    def _require_start(self, job: dict[str, Any], found: list[Any]) -> None:
        now_s = time.monotonic()
        running = sum(pod.status.phase in ("Running", "Succeeded") for pod in found)
        suspended = bool(job["spec"].get("suspend"))
        if running >= self._num_nodes or suspended:
            if suspended:
                self._tell("suspended: it waits for a queue to admit it")
            self._running_s = now_s
            return
        held = pods.waiting(found)
        if held is not None:
            self._tell(str(held))
        waited_s = now_s - self._running_s
        if waited_s <= (self._limits.image_s if held and held.image else self._limits.pending_s):
            return
        why = str(held) if held else self._why_none(job, len(found))
        raise FeedworksError(
            f"TrainJob {self._name}: {running} of {self._num_nodes} nodes run after {waited_s:.0f} s; {why}"
        )

    def _why_none(self, job: dict[str, Any], num_pods: int) -> str:
        said = [f"{each['type']}: {each.get('message', '')}" for each in _conditions(job)]
        if said:
            return "; ".join(said)
        return f"{num_pods} pods were made: is the controller of Kubeflow Trainer running?"

    def _error(self, condition: dict[str, Any]) -> FeedworksError:
        why = f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
        if self._failed is None:
            return FeedworksError(f"TrainJob {self._name} failed ({why})")
        lines = pods.last_lines(self._cluster, self._failed.pod, self._reader)
        said = "".join(f"\n  {line}" for line in lines) if lines else " nothing that is still there"
        return FeedworksError(f"TrainJob {self._name} failed ({why}): {self._failed}; its last lines:{said}")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            say(f"TrainJob {self._name}: {text}")


def _conditions(job: dict[str, Any]) -> list[dict[str, Any]]:
    return list(job.get("status", {}).get("conditions", []))


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM, by which Kubernetes ends a cancelled task, into the end of this block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
