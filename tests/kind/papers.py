"""The pipelines of the papers as Jobs, on so little data that no task takes a minute."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml

from ..pipelines.runs import ROOT, SETTINGS, write_data
from .jobs import Workplace
from .tasks import Task, run_pipeline

ALONE = "recochain"
OTHERS = ("ksa", "ocarm", "mari")  # the longest first
_MORE = {"ksa": ["baselines=window"]}


class Paper(NamedTuple):
    """A pipeline that ran as Jobs.

    Attributes:
        tasks: by name.
        data: the data folder, here and on the claim.
        seconds: all of it.
    """

    tasks: dict[str, Task]
    data: Path
    seconds: float


class Papers:
    """Runs the pipelines, each once: RecoChain alone, as it is timed, the others two at a time."""

    def __init__(self, work: Workplace) -> None:
        self._work = work
        self._ran: dict[str, Paper] = {}
        self._running: dict[str, Future[Paper]] = {}
        # Processes: kfp keeps what it runs in globals.
        self._others = ProcessPoolExecutor(2, multiprocessing.get_context("fork"))

    def __call__(self, name: str) -> Paper:
        """The run of a paper.

        Raises:
            ClusterError: a task of it failed.
        """
        if name not in self._ran:
            if name == ALONE:
                self._ran[name] = run_paper(self._work, name)
            else:
                self.start(name)
                self._ran[name] = self._running[name].result()
        return self._ran[name]

    def start(self, *names: str) -> None:
        """Begin papers that will be asked for, without waiting for them."""
        for name in names or OTHERS:
            if name not in self._running:
                self._running[name] = self._others.submit(run_paper, self._work, name)

    def close(self) -> None:
        """End what still runs."""
        self._others.shutdown(cancel_futures=True)


def run_paper(work: Workplace, name: str) -> Paper:
    """Run the compiled pipeline of a paper as Jobs."""
    data = write_data(name, work.path / f"{name}-data")
    work.put(data)
    start_s = time.monotonic()
    arguments = {"source": str(data), "preset": "tiny", "overrides": SETTINGS[name] + _MORE.get(name, [])}
    ran = run_pipeline(work, name, arguments)
    return Paper({task.name: task for task in ran}, data, time.monotonic() - start_s)


def components(name: str) -> set[str]:
    """Names of the components of a compiled pipeline."""
    path = ROOT / "pipelines" / "compiled" / f"{name}.yaml"
    every = next(iter(yaml.safe_load_all(path.read_text())))["components"]
    return {each_name.removeprefix("comp-") for each_name, each in every.items() if "executorLabel" in each}
