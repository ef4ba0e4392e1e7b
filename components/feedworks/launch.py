"""One step of a paper: in this process, in several under torchrun on this machine, or on several machines."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feedworks.configuration import flatten
from feedworks.distributed.launcher import launch_words, run_on_nodes
from feedworks.distributed.trainjob import GPU_TYPE, Nodes, own_limits
from feedworks.errors import ConfigError, FeedworksError
from feedworks.metrics.memory import CGROUPS
from feedworks.papers import PAPERS
from feedworks.progress import say
from feedworks.task_resources import THREADS


def run_step(
    paper: str,
    step: str,
    paths: Sequence[str],
    settings: tuple[str, Sequence[str]],
    *,
    num_processes: int | str = 0,
    nodes: tuple[int, int, str] = (1, 0, GPU_TYPE),
) -> None:
    """Call `feedworks.<paper>.steps.<step>(*paths, config)`.

    Args:
        paper: its name.
        step: a function of its steps that trains; the training loop shares the work of several processes.
        paths: inputs and output of the step.
        settings: name of a preset, and `key=value` overrides.
        num_processes: one for each GPU asked for; up to 1 runs the step here. Kubeflow reads a number of
            GPUs from text only, so that it may come as one.
        nodes: machines; over 1 a TrainJob of the cluster trains, and this process watches it. Then the GPUs
            of each, with a process for each, where 0 trains on their CPUs; and the name of such a GPU as a
            resource of a node.

    Raises:
        ConfigError: a count makes no sense, or there are fewer GPUs here, and no setting says
            `accelerator=cpu`.
        FeedworksError: a process failed; its own error is above.
    """
    use_own_cores()
    preset, overrides = settings
    num_processes = _count(num_processes)
    config = PAPERS[paper].part("config").resolve(preset, overrides)
    num_nodes, gpus_per_node, gpu_type = nodes
    machines = Nodes(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type)
    if gpus_per_node and num_nodes == 1:
        raise ConfigError(f"gpus_per_node={gpus_per_node} is for several nodes; one takes num_gpus")
    if num_nodes > 1:
        run_on_nodes(paper, step, paths, settings, machines)
        return
    if num_processes:
        _require_gpus(num_processes, config)
    if num_processes <= 1:
        getattr(PAPERS[paper].part("steps"), step)(*map(Path, paths), config)
        return
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, "-m", *torchrun, "-m", __name__, *launch_words(paper, step, paths, settings)]
    code = subprocess.run(command, env=os.environ | share_of_threads(num_processes), check=False).returncode
    if code:
        raise FeedworksError(f"{paper}.{step} in {num_processes} processes ended with code {code}")


def use_own_cores(cgroup: Path = CGROUPS) -> None:
    """Have torch, pyarrow and faiss, none imported yet, count the cores of this container and not the node's.

    What the environment says, and a container whose cores are not limited, stay as they are.

    Args:
        cgroup: as of `own_limits`.
    """
    limit = own_limits(cgroup).get("cpu")
    if limit and THREADS not in os.environ:
        os.environ[THREADS] = str(max(1, int(limit.removesuffix("m")) // 1000))


def _count(text: int | str) -> int:
    if not str(text).isdecimal():
        raise ConfigError(f"num_gpus={text!r}: expected a count such as 0 or 2")
    return int(text)


def share_of_threads(num_processes: int) -> dict[str, str]:
    """Return variables for each of several processes, which together have the cores of this one."""
    told = os.environ.get(THREADS, "")
    return {THREADS: str(max(1, int(told) // num_processes))} if told.isdecimal() else {}


def _require_gpus(num_gpus: int, config: Any) -> None:
    # A task that was promised GPUs and finds none would train for days on the CPU before anybody looks.
    import torch  # takes 2 s; only training comes here

    on_cpu = [key for key, value in flatten(config).items() if key.endswith("accelerator") and value == "cpu"]
    if torch.cuda.device_count() < num_gpus and not on_cpu:
        raise ConfigError(
            f"num_gpus={num_gpus}, but torch sees {torch.cuda.device_count()} CUDA device(s) here; "
            "run on a machine with that many, or set num_gpus=0 or a setting `...accelerator=cpu`"
        )


def main() -> None:
    """Run one step as one of torchrun's processes, on this machine or as Kubeflow Trainer started them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("paper")
    parser.add_argument("step")
    parser.add_argument("paths", nargs="+")
    words = parser.parse_args()
    if Path(words.paths[-1]).exists():
        # All machines start again when one of them fails, be it at the very end.
        say(f"{words.step}: already done")
        return
    try:
        run_step(words.paper, words.step, words.paths, (words.preset, words.overrides))
    except FeedworksError as error:
        sys.exit(f"feedworks: {error}")


if __name__ == "__main__":
    main()
