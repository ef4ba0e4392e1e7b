"""Two processes under torchrun, exchanging gradients by gloo."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from feedworks.storage import read_json
from feedworks.training.checkpoint import read_tensors

from . import toy
from .toy import CONFIG

EXACT = replace(CONFIG, epochs=6, checkpoint_every_s=1e9)


def torchrun(state_dir: Path, *settings: str) -> subprocess.Popen[str]:
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, toy.__file__, "train", str(state_dir), *settings],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def pids_with(argument: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    assert len(found) == 3
    return found


def finish(process: subprocess.Popen[str]) -> str:
    with process:
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    return printed


def final(state_dir: Path) -> tuple[dict[str, object], bytes]:
    position = read_json(state_dir / "final" / "state.json")["position"]
    del position["seconds"]
    return position, (state_dir / "final" / "tensors.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("strategy", "accumulate"),
    [
        ("ddp", 1),
        ("fsdp", 2),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [("ddp", 2), ("fsdp", 1)]),
    ],
)
def test_two_processes_follow_the_loss_curve_of_one(tmp_path, strategy, accumulate):
    settings = ["epochs=6", "checkpoint_every_s=1e9", f"accumulate={accumulate}", "devices=2"]
    printed = finish(torchrun(tmp_path / "two", *settings, f"strategy={strategy}"))
    assert printed.count("train: 42/42") == 1, "only the first process shows progress"
    _, expected = toy.train(tmp_path / "one", EXACT)
    found = final(tmp_path / "two")[0]["history"]
    assert isinstance(found, list)
    assert len(found) == len(expected.history) == 6
    for one, two in zip(expected.history, found, strict=True):
        assert abs(one["train/loss"] - two["train/loss"]) < 1e-5
        assert one.get(toy.METRIC) == two.get(toy.METRIC)
    ours = read_tensors(tmp_path / "one" / "final" / "tensors.safetensors")
    theirs = read_tensors(tmp_path / "two" / "final" / "tensors.safetensors")
    for name in ("table.weight", "inner.0.weight"):
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_killed_processes_end_with_the_same_bits(tmp_path, strategy):
    settings = ["epochs=6", f"strategy={strategy}"]
    finish(torchrun(tmp_path / "whole", *settings, "checkpoint_every_s=1e9"))
    process = torchrun(tmp_path / "killed", *settings)
    with process:
        give_up_s = time.monotonic() + 120
        while not any((tmp_path / "killed").glob("step-00000000[1-9]*")):
            assert process.poll() is None
            assert time.monotonic() < give_up_s
            time.sleep(0.01)
        for pid in pids_with(str(tmp_path / "killed")):  # torchrun and both workers, none can tidy up
            os.kill(pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "final").exists()
    if strategy == "fsdp":  # the state is whole, whoever wrote it
        state = max((tmp_path / "killed").glob("step-*")) / "tensors.safetensors"
        assert {name: x.shape for name, x in read_tensors(state).items() if name.startswith("model/")} == {
            f"model/{name}": x.shape for name, x in toy.Toy().state_dict().items() if name != "out.weight"
        }
    finish(torchrun(tmp_path / "killed", *settings, "checkpoint_every_s=1e9"))
    assert final(tmp_path / "killed") == final(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("first", ["one", "fsdp"])
def test_one_process_may_end_what_sharded_ones_began_and_the_other_way_round(tmp_path, first):
    def loss(module, batch):
        if module.num_calls == 18:
            raise KeyboardInterrupt
        return toy.loss(module, batch)

    settings = replace(EXACT, checkpoint_every_s=0)
    _, expected = toy.train(tmp_path / "expected", EXACT, p_dropout=0.0)
    state = tmp_path / "s"
    if first == "one":
        with pytest.raises(KeyboardInterrupt):
            toy.train(state, settings, p_dropout=0.0, loss=loss)
        finish(torchrun(state, "p_dropout=0", "epochs=6", "strategy=fsdp"))
        history = final(state)[0]["history"]
    else:
        with torchrun(
            state, "p_dropout=0", "epochs=6", "checkpoint_every_s=0", "strategy=fsdp", "stop=18"
        ) as process:
            process.communicate(timeout=300)
        assert max(state.glob("step-*")).name == "step-0000000018"
        history = toy.train(state, EXACT, p_dropout=0.0)[1].history
    assert isinstance(history, list)
    for one, two in zip(expected.history, history, strict=True):
        assert abs(one["train/loss"] - two["train/loss"]) < 1e-5


@pytest.mark.slow
def test_processes_that_see_different_states_are_refused(tmp_path):
    def loss(module, batch):
        if module.num_calls == 3:
            raise KeyboardInterrupt
        return toy.loss(module, batch)

    settings = replace(EXACT, checkpoint_every_s=0)
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path / "0", settings, loss=loss)
    with torchrun(tmp_path / "{rank}", "epochs=6") as process:
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert "ConfigError: processes see different states in" in printed
