"""A step by `run_step`: GPUs that were asked for must be there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from feedworks.errors import ConfigError
from feedworks.launch import run_step


def train(folder: Path, num_gpus: int | str, *overrides: str) -> None:
    paths = [str(folder / name) for name in ("sequences", "sasrec")]
    run_step("recochain", "train_baseline", paths, ("tiny", overrides), num_processes=num_gpus)


@pytest.mark.parametrize("num_gpus", ["1", 2, "64"])
def test_gpus_that_are_not_there_are_told_before_anything_runs(tmp_path: Path, num_gpus: int | str) -> None:
    if torch.cuda.device_count() >= int(num_gpus):
        pytest.skip("this machine has as many GPUs")
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, num_gpus)
    (line,) = str(caught.value).splitlines()
    for word in (f"num_gpus={num_gpus}", f"sees {torch.cuda.device_count()} CUDA", "set num_gpus=0"):
        assert word in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_setting_that_asks_for_cuda_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    from feedworks.contracts.synthetic import write_synthetic
    from feedworks.recochain import config, steps

    data = write_synthetic(tmp_path / "events", num_users=60, num_items=60, seed=2).folder
    steps.prepare(data, tmp_path / "sequences", config.resolve("tiny", []))
    with pytest.raises(ConfigError, match=r"accelerator=cuda, but torch sees no CUDA device; use"):
        train(tmp_path, "0", "sasrec_training.accelerator=cuda")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "sequences"]


@pytest.mark.parametrize("num_gpus", ["two", "-1", "1.5", ""])
def test_a_number_of_gpus_is_a_count(tmp_path: Path, num_gpus: str) -> None:
    with pytest.raises(ConfigError, match="expected a count such as 0 or 2"):
        train(tmp_path, num_gpus)
