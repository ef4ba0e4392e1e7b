"""Settings: presets resolve and round-trip, and what cannot work is refused before anything is trained."""

from __future__ import annotations

import pytest

from feedworks.configuration import from_json, to_json
from feedworks.errors import ConfigError
from feedworks.mari.config import PRESETS, MariConfig, resolve


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_round_trip(preset: str) -> None:
    config = resolve(preset, ["ranker.arch=din", "bench.rows=1,50", "verify.dtypes=float32"])
    assert from_json(MariConfig, to_json(config)) == config
    assert (config.ranker.arch, config.bench.rows, config.verify.dtypes) == ("din", (1, 50), ("float32",))


def test_a_model_from_outside_is_two_settings() -> None:
    config = resolve("tiny", ["outside.model=a.b:c", "outside.sides=s.json"])
    assert (config.outside.model, config.outside.sides) == ("a.b:c", "s.json")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["outside.model=a:b"], "go together"),
        (["outside.model=ab", "outside.sides=s"], "module:callable"),
        (["outside.model=:b", "outside.sides=s"], "module:callable"),
        (["ranker.arch=dnn"], "mlp"),
        (["ranker.hidden="], "widths such as"),
        (["ranker.dropout=1"], "0 to 0.99"),
        (["convert.layout=messy"], "neat"),
        (["convert.rows=5,5"], "rising"),
        (["verify.dtypes=bfloat16"], "float32"),
        (["verify.dtypes=float32,int8"], "float16"),
        (["verify.requests="], "candidates per request"),
        (["verify.requests=0"], "1 to"),
        (["bench.rows=2,1"], "rising"),
        (["gate.min_auc=2"], "0 to 1"),
        (["speed=1"], "known settings: seed"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve("tiny", overrides)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="tiny, small, paper"):
        resolve("huge")
