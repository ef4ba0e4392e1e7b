"""Stages that are killed, and stages on two processes that exchange gradients by gloo."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from feedworks.training.checkpoint import read_tensors

from . import training
from .training import STAGES, STEPWISE, TRAINING, model, run, stage


def start(*command: str) -> str:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-W", "error", *command],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=550,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def torchrun(names: str, state_dir: Path, *settings: str) -> str:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return start(*launch, training.__file__, names, str(state_dir), *settings)


def results(folder: Path) -> dict[str, tuple[dict[str, object], bytes]]:
    found = {}
    for final in sorted(folder.rglob("final")):
        position = json.loads((final / "state.json").read_text())["position"]
        del position["seconds"]
        found[str(final.relative_to(folder))] = position, (final / "tensors.safetensors").read_bytes()
    return found


def test_stages_killed_again_and_again_end_with_the_same_bits(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in STAGES:
        cfg = replace(STEPWISE[name], training=TRAINING)
        run(name, cfg, tmp_path / "whole" / name, model())
    torch.set_num_threads(threads)
    printed = start(training.__file__, ",".join(STAGES), str(tmp_path / "killed"), "kills")
    assert printed.count("killed after step") == 2 * len(STAGES)
    whole, killed = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert len(whole) == len(STAGES) + 1, "two lengths of an extension"
    assert killed == whole


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("fsdp", {"pack": True, "checkpointing": True}),
        pytest.param("ddp", {"pack": True, "checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("fsdp", {}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_follow_one(tmp_path, strategy, changes):
    settings = [f"{name}={value}" for name, value in changes.items()]
    printed = torchrun(",".join(STAGES), tmp_path / "two", f"strategy={strategy}", "accumulate=2", *settings)
    for name in STAGES:
        trained, _ = run(name, stage(name, **changes), tmp_path / "one" / name, model())
        assert trained is not None
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, (position, _) in one.items():
        for first, second in zip(position["history"], two[name][0]["history"], strict=True):
            assert first.keys() == second.keys()
            for key, value in first.items():
                assert abs(second[key] - value) < 1e-5, (name, key)
        first, second = (
            read_tensors(tmp_path / side / name / "tensors.safetensors") for side in ("one", "two")
        )
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            torch.testing.assert_close(second[key], tensor, rtol=1e-3, atol=1e-4)
    losses = {tuple(line.split()[::2]) for line in printed.splitlines() if line.startswith(STAGES)}
    assert len(losses) == len(STAGES), "both processes hold the same model"
