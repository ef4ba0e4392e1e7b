"""Training in a container that is killed with SIGKILL at a random step, again and again: the same weights."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from feedworks import images
from feedworks.contracts.synthetic import write_synthetic

from .engine import docker, mounted, require, run, started

pytestmark = pytest.mark.docker

SETTINGS = ("--preset=tiny", "--set=generator.epochs=6", "--set=generator.patience=6")
LAUNCH = ("python3", "-m", "feedworks.launch", *SETTINGS, "recochain")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(images.CPU)
    folder = tmp_path_factory.mktemp("killed")
    write_synthetic(folder / "data", num_users=400, num_items=200, seed=3)
    for step, paths in (
        ("prepare", ("data", "sequences")),
        ("fit_tokenizer", ("sequences", "tokenizer")),
        ("assign_ids", ("sequences", "tokenizer", "ids")),
    ):
        launch(folder, step, *paths)
    return folder


def words(folder: Path, step: str, *paths: str) -> tuple[str, ...]:
    return (*LAUNCH, step, *(str(folder / path) for path in paths))


def options(folder: Path) -> tuple[str, ...]:
    return (*mounted(folder, writable=True), "-e", "OMP_NUM_THREADS=1")


def launch(folder: Path, step: str, *paths: str) -> str:
    return run(images.CPU, *words(folder, step, *paths), options=options(folder))


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> tuple[dict[str, bytes], float]:
    start_s = time.monotonic()
    launch(prepared, "train_generator", "sequences", "ids", "undisturbed")
    return weights(prepared / "undisturbed"), time.monotonic() - start_s


def killed_training(prepared: Path, name: str, after_s: float) -> bool:
    """Train in a container until it ends or is killed; tell whether it was killed."""
    with started(
        images.CPU,
        *words(prepared, "train_generator", "sequences", "ids", name),
        options=options(prepared),
    ) as container:
        try:
            docker("wait", container, check=False) if after_s < 0 else time.sleep(after_s)
            killed = docker("kill", "--signal=KILL", container, check=False).returncode == 0
            code = docker("wait", container).stdout.strip()
            assert code == ("137" if killed else "0"), docker("logs", container, check=False).stderr
            return killed
        finally:
            docker("kill", container, check=False)


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))]
)
def test_a_killed_training_goes_on_to_the_same_weights(
    prepared: Path, undisturbed: tuple[dict[str, bytes], float], seed: int
) -> None:
    expected, whole_s = undisturbed
    chance = random.Random(seed)
    kills, name = 0, f"killed-{seed}"
    # Starting takes most of so short a run: a kill at any time lies in it or in any step.
    while killed_training(prepared, name, chance.uniform(0.3, 1.0) * whole_s):
        kills += 1
        assert not (prepared / name).exists()
        if kills == 3:
            break
    launch(prepared, "train_generator", "sequences", "ids", name)
    assert kills
    assert weights(prepared / name) == expected
