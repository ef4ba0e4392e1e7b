"""A script that runs steps of papers and writes the loss of each optimiser step.

    curves.py JOBS.json    in one process, or in each of torchrun's

JOBS.json is a list of {paper, step, overrides, inputs, out}. OUT/curve.json gets the losses from the first
process; OUT/changed.<rank> what a process made, wrote or removed beside OUT/result, which gets the result.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import feedworks.training.loop
from feedworks.launch import run_step
from feedworks.training.step import Stepper

RANK = os.environ.get("RANK", "0")
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


class RecordingStepper(Stepper):
    """Keeps the loss of every step, the mean over the whole batch."""

    losses: list[float] = []  # noqa: RUF012

    def step(self, batch: Any, number: int) -> None:
        self.reset()
        super().step(batch, number)
        self.losses.append(self.means()["loss"])


class Changes:
    """Notes by an audit hook what this process changes below a folder."""

    def __init__(self) -> None:
        self.folder = ""
        self.found: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in CHANGES
        if writes and self.folder and isinstance(arguments[0], str | os.PathLike):
            path = os.fspath(arguments[0])
            if str(path).startswith(self.folder):
                self.found.append(f"{event} {path}")


def main() -> None:
    changes = Changes()
    feedworks.training.loop.Stepper = RecordingStepper  # type: ignore[misc]
    for job in json.loads(Path(sys.argv[1]).read_text()):
        out = Path(job["out"])
        changes.folder, changes.found = str(out), []
        RecordingStepper.losses = []
        paths = [*job["inputs"], str(out / "result")]
        run_step(job["paper"], job["step"], paths, ("tiny", job["overrides"]))
        changes.folder = ""
        (out / f"changed.{RANK}").write_text("\n".join(changes.found))
        if RANK == "0":
            (out / "curve.json").write_text(json.dumps(RecordingStepper.losses))


if __name__ == "__main__":
    main()
