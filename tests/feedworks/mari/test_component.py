"""Each component by its plain function with real artifacts, in the order of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from feedworks.errors import ConfigError, DataError
from feedworks.mari import component

from .conftest import QUICK

KINDS: dict[str, type[dsl.Artifact]] = {
    "candidates": dsl.Dataset,
    "validation": dsl.HTML,
    "ranker": dsl.Model,
    "sites": dsl.Artifact,
    "page": dsl.HTML,
    "twin": dsl.Model,
    "verdict": dsl.Artifact,
    "bench": dsl.Artifact,
    "evaluation": dsl.Artifact,
    "metrics": dsl.Metrics,
    "report": dsl.HTML,
    "model": dsl.Model,
}


def artifacts(folder: Path) -> dict[str, Any]:
    return {name: kind(name=name, uri=str(folder / name), metadata={}) for name, kind in KINDS.items()}


def hand_over(made: dict[str, Any], settings: dict[str, Any], source: str) -> None:
    """All tasks, from data to model."""

    def call(task: Any, *names: str, **extra: Any) -> Any:
        return task.python_func(**settings, **extra, **{name: made[name] for name in names})

    call(component.prepare_candidates, "candidates", "validation", source=source, data_version="1")
    call(
        component.make_ranker,
        "candidates",
        "ranker",
        num_gpus="0",
        num_nodes=1,
        gpus_per_node=0,
        gpu_type="x/gpu",
    )
    call(component.colour_graph, "ranker", "sites", "page")
    call(component.reparameterise, "ranker", "twin")
    call(component.verify, "ranker", "twin", "verdict")
    call(component.benchmark, "ranker", "bench")
    results = ("ranker", "twin", "sites", "verdict", "bench", "evaluation")
    call(component.evaluate, "candidates", *results, "metrics", "report")
    assert call(component.gate, "evaluation") is True
    call(component.package, "twin", "sites", "evaluation", "model")


def test_the_components_hand_over_from_candidates_to_a_twin(ranking_data: Path, tmp_path: Path) -> None:
    made = artifacts(tmp_path)
    settings = {"preset": "tiny", "overrides": list(QUICK)}
    hand_over(made, settings, str(ranking_data))
    logged = made["metrics"].metadata
    assert json.loads(json.dumps(logged, allow_nan=False)) == logged
    assert 0 <= logged["test/twin/auc"] <= 1
    for page in ("validation", "page", "report"):
        assert Path(made[page].path).read_text().lower().startswith("<!doctype html")
    assert made["sites"].metadata["num_cut"] == 1
    assert made["verdict"].metadata["equal"] is True
    assert made["model"].metadata["tag"].startswith("mari:")
    assert (Path(made["model"].path) / "package.json").is_file()
    strict = {"preset": "tiny", "overrides": [*QUICK, "gate.min_speedup=1000"]}
    assert component.gate.python_func(**strict, evaluation=made["evaluation"]) is False


def test_a_model_from_outside_needs_no_data(outside: list[str], tmp_path: Path) -> None:
    made = artifacts(tmp_path)
    hand_over(made, {"preset": "tiny", "overrides": outside}, "no such folder")
    assert made["verdict"].metadata["equal"] is True
    assert made["model"].metadata["tag"].startswith("mari:")


def test_bad_data_stops_the_first_task(ranking_data: Path, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    for path in ranking_data.iterdir():
        (source / path.name).write_bytes(path.read_bytes()[: 100 if path.name == "test.parquet" else None])
    made = artifacts(tmp_path)
    with pytest.raises(DataError, match="test"):
        component.prepare_candidates.python_func(
            preset="tiny",
            overrides=[],
            source=str(source),
            data_version="1",
            candidates=made["candidates"],
            validation=made["validation"],
        )


def test_a_wrong_setting_stops_a_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'speed'"):
        component.gate.python_func(
            preset="tiny", overrides=["speed=1"], evaluation=artifacts(tmp_path)["evaluation"]
        )
