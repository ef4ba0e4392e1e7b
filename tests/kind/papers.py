"""The pipelines of the papers as Jobs, on so little data that no task takes a minute."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml

from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.synthetic_ranking import write_synthetic_ranking
from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.contracts.synthetic_text import write_synthetic_text

from .jobs import Workplace
from .tasks import ROOT, Task, run_pipeline

ALONE = "recochain"
OTHERS = ("ksa", "ocarm", "mari")  # the longest first
_STAGES = ("pretrain", "distil", "anneal")
SETTINGS = {
    "recochain": [
        *("generator.epochs=2", "joint.epochs=1", "sasrec_training.epochs=1"),
        *("evaluation.sweep_beams=", "evaluation.bootstrap=50", "gate.min_gain=-1"),
    ],
    "mari": [
        *("training.epochs=1", "bench.rows=1,50", "bench.repeats=3"),
        *("evaluation.bootstrap=20", "verify.requests=1,7"),
    ],
    "ocarm": ["teacher.epochs=1", "student.epochs=1", "evaluation.bootstrap=20", "model.hidden=8"],
    "ksa": [
        *("corpus.vocab_size=600", "needles.tasks=single,frequent", "needles.lengths=112,144"),
        *("needles.train_rows=8", "evaluation.seq_len=144", "evaluation.buckets=32", "evaluation.max_rows=4"),
        *("evaluation.decode_tokens=60", "evaluation.cache_lengths=4096", "evaluation.max_new_tokens=4"),
        *(f"{stage}.seq_len=144" for stage in _STAGES),
        *(f"{stage}.steps_per_epoch=2" for stage in (*_STAGES, "extend")),
        *("extend.lengths=192", "baselines=window"),
    ],
}


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
    arguments = {"source": str(data), "preset": "tiny", "overrides": SETTINGS[name]}
    ran = run_pipeline(work, name, arguments)
    return Paper({task.name: task for task in ran}, data, time.monotonic() - start_s)


def write_data(name: str, folder: Path) -> Path:
    """Write a small data folder of the kind that a paper reads."""
    folder.mkdir()
    if name == "recochain":
        write_synthetic(folder, num_users=200, num_items=120, seed=3)
    elif name == "mari":
        write_synthetic_ranking(folder, num_rows=2000, seed=1)
    elif name == "ocarm":
        write_synthetic_retention(folder, num_users=250, num_items=300, seed=1)
    else:
        write_synthetic_text(folder, num_documents=12, num_words=800, seed=1)
    return folder


def components(name: str) -> set[str]:
    """Names of the components of a compiled pipeline."""
    path = ROOT / "pipelines" / "compiled" / f"{name}.yaml"
    every = next(iter(yaml.safe_load_all(path.read_text())))["components"]
    return {each_name.removeprefix("comp-") for each_name, each in every.items() if "executorLabel" in each}
