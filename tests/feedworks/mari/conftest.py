"""Small finished runs for all tests that need one: of a trained ranker, and of a model from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import theirs

QUICK = (
    *("training.epochs=2", "bench.rows=1,50", "bench.repeats=3", "evaluation.bootstrap=20"),
    *("convert.rows=1,100", "verify.requests=1,7"),
)


@pytest.fixture(scope="session")
def ranking_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ranking data folder."""
    from feedworks.contracts.synthetic_ranking import write_synthetic_ranking

    return write_synthetic_ranking(tmp_path_factory.mktemp("candidates"), num_rows=2000, seed=1)


@pytest.fixture(scope="session")
def trained_run(ranking_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of preset tiny with a DIN; copy it before writing to it."""
    from feedworks.mari import chain, config

    out = tmp_path_factory.mktemp("trained")
    chain.run(ranking_data, out, config.resolve("tiny", [*QUICK, "ranker.arch=din"]))
    return out


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The settings that bring in `theirs.py`."""
    sides = theirs.write_sides(tmp_path_factory.mktemp("sides") / "sides.json")
    return [*QUICK, f"outside.model={theirs.__file__}:build", f"outside.sides={sides}"]


@pytest.fixture(scope="session")
def outside_run(outside: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run on a model from outside; copy it before writing to it."""
    from feedworks.mari import chain, config

    out = tmp_path_factory.mktemp("outside")
    chain.run(None, out, config.resolve("tiny", outside))
    return out
