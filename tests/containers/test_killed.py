"""Training in a container that is killed with SIGKILL at a random step, again and again: the same weights."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from feedworks import images
from feedworks.contracts.synthetic import write_synthetic

from .engine import DOCKER, docker, mounted, require, run, started

pytestmark = pytest.mark.docker

# After every step a state, by which a test sees at which step a run is.
SETTINGS = ("--preset=tiny", "--set=generator.epochs=6", "--set=generator.patience=6")
EACH_STEP = "--set=generator.checkpoint_every_s=0"
LAUNCH = ("python3", "-m", "feedworks.launch", EACH_STEP, *SETTINGS, "recochain")


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


def newest_step(folder: Path) -> int:
    """The newest step that a run into `folder` has a state of, 0 before the first."""
    try:
        states = list(folder.with_name(f"{folder.name}.state").rglob("step-*"))
    except FileNotFoundError:  # an older one went away meanwhile
        return 0
    return max((int(path.name.removeprefix("step-")) for path in states), default=0)


def train(prepared: Path, name: str, *, until: int | None = None) -> int:
    """Train in a container, to its end or killed with SIGKILL at a step; return the last step seen."""
    command = words(prepared, "train_generator", "sequences", "ids", name)
    waiting = [DOCKER, "wait"]
    with (
        started(images.CPU, *command, options=options(prepared)) as container,
        subprocess.Popen([*waiting, container], stdout=subprocess.PIPE, text=True) as process,
    ):
        step = 0
        while process.poll() is None:
            step = max(step, newest_step(prepared / name))
            if until is not None and step >= until:
                docker("kill", "--signal=KILL", container)
                break
            time.sleep(0.005)
        code = process.communicate()[0].strip()
        assert code == ("0" if until is None else "137"), docker("logs", container, check=False).stderr
    return max(step, newest_step(prepared / name))


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> tuple[dict[str, bytes], int]:
    steps = train(prepared, "undisturbed")
    assert steps > 100
    return weights(prepared / "undisturbed"), steps


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))]
)
def test_a_killed_training_goes_on_to_the_same_weights(
    prepared: Path, undisturbed: tuple[dict[str, bytes], int], seed: int
) -> None:
    expected, steps = undisturbed
    name = f"killed-{seed}"
    reached = train(prepared, name, until=random.Random(seed).randrange(1, steps - 20))
    assert 0 < reached < steps
    assert not (prepared / name).exists()
    assert train(prepared, name) > reached
    assert weights(prepared / name) == expected
    print(f"killed at step {reached} of {steps}: {len(expected)} files are the same")
