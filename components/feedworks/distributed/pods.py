"""What the pods of a training say: why they do not start, how one ended, what it printed."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Any, NamedTuple

from feedworks.distributed.cluster import Cluster, UnreachableError
from feedworks.distributed.trainjob import POD_INDEX

_SLACK_S = 10
# torchrun tells the end of a process in some 40 lines, below what the process itself said.
_REPORT = 50
_REPORT_BEGINS = re.compile(r"elastic/multiprocessing/api\.py:\d+\] failed \(exitcode")
# The kubelet tries these again, mostly in vain.
IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
)


class Ended(NamedTuple):
    """How a container ended that did not do its work."""

    pod: str
    code: int | None
    reason: str
    at: str

    def __str__(self) -> str:
        code = "" if self.code is None else f" with code {self.code}"
        return f"pod {self.pod} ended{code} ({self.reason})"


class Waiting(NamedTuple):
    """Why a pod does not run."""

    pod: str
    why: str
    image: bool

    def __str__(self) -> str:
        return f"pod {self.pod}: {self.why}"


def index(pod: Any) -> int:
    """Return the number of a pod's node."""
    labels, annotations = pod.metadata.labels or {}, pod.metadata.annotations or {}
    return int(labels.get(POD_INDEX) or annotations.get(POD_INDEX) or 0)


def failed(pods: list[Any]) -> Ended | None:
    """Return the pod that failed first; those that lose it fail after it."""
    found = []
    for pod in pods:
        status = pod.status
        for container in status.container_statuses or []:
            ended = container.state.terminated or (container.last_state and container.last_state.terminated)
            if ended and ended.exit_code:
                at = str(ended.finished_at or "")
                found.append(Ended(pod.metadata.name, ended.exit_code, ended.reason or "Error", at))
        if status.phase == "Failed" and not any(each.pod == pod.metadata.name for each in found):
            why = ": ".join(filter(None, [status.reason or "Failed", status.message]))
            found.append(Ended(pod.metadata.name, None, why, "~"))  # after those whose time is known
    return min(found, key=lambda each: each.at, default=None)


def waiting(pods: list[Any]) -> Waiting | None:
    """Return a pod that waits, one whose image is missing first."""
    found = [each for pod in pods if pod.status.phase == "Pending" and (each := _why(pod))]
    return min(found, key=lambda each: not each.image, default=None)


def _why(pod: Any) -> Waiting | None:
    name = pod.metadata.name
    for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        held = container.state and container.state.waiting
        if held and held.reason not in (None, "PodInitializing"):
            said = f"{held.reason}: {held.message}" if held.message else held.reason
            if held.reason in IMAGE_REASONS:
                return Waiting(name, f"image {container.image} cannot be had: {said}", True)
            return Waiting(name, said, False)
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status != "True":
            return Waiting(name, f"{condition.reason}: {condition.message}", False)
    return Waiting(name, "has no node yet", False)


class LogReader:
    """Gives the new lines of one pod after the other, each line once.

    Args:
        cluster: where the pods are.
        kept: how many lines `last` remembers, also of a pod that is gone.
    """

    def __init__(self, cluster: Cluster, kept: int = 20 + _REPORT) -> None:
        self.pod = ""
        self.last: list[str] = []
        self._cluster = cluster
        self._kept = kept
        self._seen: set[str] = set()
        self._read_s: float | None = None

    def new_lines(self, pod: str) -> list[str]:
        """Return what a pod has printed since the last call, without times."""
        if pod != self.pod:
            self.pod, self.last, self._seen, self._read_s = pod, [], set(), None
        now_s = time.monotonic()
        since_s = None if self._read_s is None else int(now_s - self._read_s) + _SLACK_S
        lines = self._cluster.log(pod, since_s=since_s)
        found = [line.partition(" ")[2] for line in lines if line not in self._seen]
        if lines:
            # Times are of nanoseconds: an equal line is the same one, read again because of the slack.
            self._seen = set(lines)
            self._read_s = now_s
        self.last = [*self.last, *found][-self._kept :]
        return found


def last_lines(cluster: Cluster, pod: str, reader: LogReader, count: int = 20) -> list[str]:
    """Return what a pod printed last, without torchrun's report; what was read of it before it was gone."""
    lines: list[str] = []
    with suppress(UnreachableError):  # its machine may be gone, and its log with it
        lines = [line.partition(" ")[2] for line in cluster.log(pod, last=count + _REPORT)]
    lines = lines or (reader.last if pod == reader.pod else [])
    report = next((place for place, line in enumerate(lines) if _REPORT_BEGINS.search(line)), 0)
    return (lines[:report] or lines)[-count:]
