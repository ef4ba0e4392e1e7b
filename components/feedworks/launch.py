"""One step of a paper in this process, or in several under torchrun: one for each GPU of the machine."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from feedworks.errors import FeedworksError
from feedworks.papers import PAPERS


def run_step(
    paper: str,
    step: str,
    paths: Sequence[str],
    settings: tuple[str, Sequence[str]],
    *,
    num_processes: int = 1,
) -> None:
    """Call `feedworks.<paper>.steps.<step>(*paths, config)`.

    Args:
        paper: its name.
        step: a function of its steps that trains; the training loop shares the work of several processes.
        paths: inputs and output of the step.
        settings: name of a preset, and `key=value` overrides.
        num_processes: up to 1 runs the step here.

    Raises:
        FeedworksError: a process failed; its own error is above.
    """
    preset, overrides = settings
    if num_processes <= 1:
        config = PAPERS[paper].part("config").resolve(preset, overrides)
        getattr(PAPERS[paper].part("steps"), step)(*map(Path, paths), config)
        return
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    words = [f"--preset={preset}", *(f"--set={override}" for override in overrides), paper, step, *paths]
    command = [sys.executable, "-m", *torchrun, "-m", __name__, *words]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise FeedworksError(f"{paper}.{step} in {num_processes} processes ended with code {code}")


def main() -> None:
    """Run one step as one of torchrun's processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("paper")
    parser.add_argument("step")
    parser.add_argument("paths", nargs="+")
    words = parser.parse_args()
    run_step(words.paper, words.step, words.paths, (words.preset, words.overrides))


if __name__ == "__main__":
    main()
