"""One small model of the whole chain for all tests that need a finished one."""

from __future__ import annotations

from pathlib import Path

import pytest

OVERRIDES = (
    "generator.epochs=1",
    "joint.epochs=1",
    "sasrec_training.epochs=1",
    "evaluation.sweep_beams=",
    "evaluation.sweep_retrieved=",
    "evaluation.bootstrap=20",
    "gate.min_gain=-1",
)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of preset tiny on 150 synthetic users and 100 items."""
    from feedworks.contracts.synthetic import write_synthetic
    from feedworks.recochain import chain, config

    folder = tmp_path_factory.mktemp("recochain")
    data = write_synthetic(folder / "data", num_users=150, num_items=100, seed=1).folder
    chain.run(data, folder / "out", config.resolve("tiny", OVERRIDES))
    return folder / "out"


@pytest.fixture(scope="session")
def packaged_model(finished_run: Path) -> Path:
    """The packaged model of `finished_run`."""
    return finished_run / "model"
