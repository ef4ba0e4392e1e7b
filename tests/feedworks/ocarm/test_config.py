"""Settings: presets resolve and round-trip, and what cannot work is refused before anything is trained."""

from __future__ import annotations

import pytest

from feedworks.configuration import from_json, to_json
from feedworks.errors import ConfigError
from feedworks.ocarm.config import PRESETS, Architecture, OcarmConfig, Sizes, resolve


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_round_trip(preset: str) -> None:
    config = resolve(preset, ["samples.horizons=7,30", "distil.similarity=infonce", "samples.idle_days=3"])
    assert from_json(OcarmConfig, to_json(config)) == config
    assert (config.samples.horizons, config.distil.similarity) == ((7, 30), "infonce")


def test_an_architecture_round_trips() -> None:
    config = resolve("tiny")
    found = Architecture(model=config.model, samples=config.samples, sizes=Sizes(num_items=3, vector_width=2))
    assert from_json(Architecture, to_json(found)) == found


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["samples.horizons=7,1"], "rising"),
        (["samples.horizons=2"], "1, 7, 30"),
        (["samples.horizons="], "rising"),
        (["samples.idle_days=0"], "more than 0"),
        (["samples.content_days=1000000000"], "1 to 10000"),
        (["samples.max_history=0"], "1 to"),
        (["samples.valid_share=0.5", "samples.test_share=0.5"], "learn from"),
        (["model.width=10", "model.num_heads=4"], "multiple of num_heads"),
        (["model.hidden="], "widths such as"),
        (["model.dropout=1"], "0 to 0.99"),
        (["distil.weight=-1"], "at least 0"),
        (["distil.similarity=dot"], "infonce"),
        (["distil.temperature=0"], "more than 0"),
        (["evaluation.seeds=1,1"], "different"),
        (["gate.max_teacher_auc=0.1"], "0.5 to 1"),
        (["gate.max_observable_auc=1.1"], "gate.max_observable_auc=1.1"),
        (["seed=-1"], "at least 0"),
        (["speed=1"], "known settings: seed"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve("tiny", overrides)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="tiny, small, paper"):
        resolve("huge")
