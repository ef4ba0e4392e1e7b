"""Each component by its plain function with real artifacts, in the order of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kfp import dsl

from feedworks.contracts.synthetic import write_synthetic
from feedworks.errors import ConfigError, DataError
from feedworks.recochain import component

ArtifactT = TypeVar("ArtifactT", bound=dsl.Artifact)
QUICK = [
    *("generator.epochs=1", "joint.epochs=1", "sasrec_training.epochs=1"),
    "joint.accelerator=cpu",  # so that two processes may stand for two GPUs
    *("evaluation.sweep_beams=", "evaluation.bootstrap=50", "gate.min_gain=-1"),
]
SETTINGS: dict[str, Any] = {"preset": "tiny", "overrides": QUICK}


def artifact(kind: type[ArtifactT], folder: Path, name: str) -> ArtifactT:
    return kind(name=name, uri=str(folder / name), metadata={})


def test_the_components_hand_over_from_events_to_a_model(tmp_path: Path) -> None:
    source = write_synthetic(tmp_path / "events", num_users=120, num_items=100, seed=2).folder
    made: dict[str, Any] = {
        name: artifact(kind, tmp_path, name)
        for name, kind in {
            "sequences": dsl.Dataset,
            "validation": dsl.HTML,
            "tokenizer": dsl.Model,
            "semantic_ids": dsl.Dataset,
            "generator": dsl.Model,
            "candidates": dsl.Dataset,
            "joint": dsl.Model,
            "sasrec": dsl.Model,
            "evaluation": dsl.Artifact,
            "metrics": dsl.Metrics,
            "report": dsl.HTML,
            "model": dsl.Model,
        }.items()
    }

    def call(task: Any, *names: str, **extra: Any) -> Any:
        return task.python_func(**SETTINGS, **extra, **{name: made[name] for name in names})

    call(component.prepare_sequences, "sequences", "validation", source=str(source), data_version="1")
    assert made["sequences"].metadata["num_users"] == 120
    assert Path(made["validation"].path).read_text().lower().startswith("<!doctype html")
    data, one = ("sequences", "semantic_ids"), {"num_nodes": 1, "gpus_per_node": 0, "gpu_type": "x/gpu"}
    call(component.fit_tokenizer, "sequences", "tokenizer")
    call(component.assign_ids, *data, "tokenizer")
    call(component.train_generator, *data, "generator", num_gpus="0", **one)
    call(component.mine_candidates, *data, "generator", "candidates")
    call(component.train_joint, *data, "generator", "candidates", "joint", num_gpus="2", **one)
    call(component.train_baseline, "sequences", "sasrec", num_gpus="1", **one)
    call(component.evaluate, *data, "generator", "joint", "sasrec", "evaluation", "metrics", "report")
    logged = made["metrics"].metadata
    assert json.loads(json.dumps(logged, allow_nan=False)) == logged
    assert 0 <= logged["test/rerank/recall@5"] <= 1
    assert Path(made["report"].path).read_text().lower().startswith("<!doctype html")
    assert call(component.gate, "evaluation") is True
    strict = {"preset": "tiny", "overrides": [*QUICK, "gate.min_gain=1000"]}
    assert component.gate.python_func(**strict, evaluation=made["evaluation"]) is False
    call(component.package, *data, "tokenizer", "joint", "evaluation", "model")
    assert made["model"].metadata["tag"]
    assert list(Path(made["model"].path).glob("*.safetensors"))


def test_bad_data_stops_the_first_task(tmp_path: Path) -> None:
    source = write_synthetic(tmp_path / "events", num_users=20, num_items=60, seed=2)
    source.items.write_bytes(source.items.read_bytes()[:-100])
    sequences = artifact(dsl.Dataset, tmp_path, "sequences")
    with pytest.raises(DataError, match="items"):
        component.prepare_sequences.python_func(
            **SETTINGS,
            source=str(source.folder),
            data_version="1",
            sequences=sequences,
            validation=artifact(dsl.HTML, tmp_path, "validation"),
        )
    assert not Path(sequences.path).exists()


def test_a_wrong_setting_stops_a_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'speed'"):
        component.gate.python_func(
            preset="tiny", overrides=["speed=1"], evaluation=artifact(dsl.Artifact, tmp_path, "e")
        )
