"""Sizes of a decoder: what transformers keeps of them, and which make none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from feedworks.errors import ConfigError
from feedworks.ksa.architecture import Qwen3KsaConfig, hybrid_windows

from . import decoders


@pytest.mark.parametrize(
    ("full_every", "expected"),
    [
        (4, [128, 128, 128, None, 128, 128, 128, None, 128]),
        (3, [128, 128, None] * 3),
        (1, [None] * 9),
        (0, [128] * 9),
        (10, [128] * 9),
    ],
)
def test_windows_of_a_hybrid(full_every: int, expected: list[int | None]) -> None:
    assert hybrid_windows(9, full_every=full_every) == expected


def test_without_windows_it_is_the_papers_hybrid() -> None:
    config = Qwen3KsaConfig(num_hidden_layers=36)
    assert (config.chunk, config.summaries, config.summary_weight) == (8, 1, 1.0)
    assert config.layer_windows == hybrid_windows(36, 128, 4)
    assert config.layer_windows.count(None) == 9


def test_kept_by_transformers(tmp_path: Path) -> None:
    config = Qwen3KsaConfig(
        **decoders.SIZES,
        chunk=5,
        summaries=2,
        windows=[3, None, 0, 7],
        raw_window="token",
        summary_weight=0.25,
        summary_bypass=True,
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6},
    )
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["windows"] == [3, None, 0, 7]
    back = AutoConfig.from_pretrained(tmp_path)
    assert type(back) is Qwen3KsaConfig
    assert back.to_dict() | {"_name_or_path": ""} == config.to_dict()


@pytest.mark.parametrize(
    "settings", [{"summaries": 0}, {"summary_projections": False}, {"summaries": 0, "summary_weight": 0.5}]
)
def test_without_projections_their_share_is_none(settings: dict[str, Any]) -> None:
    assert Qwen3KsaConfig(**decoders.SIZES, **settings).summary_weight == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chunk": 0}, "chunk=0: expected a whole number from 1 on"),
        ({"summaries": -1}, "summaries=-1: expected a whole number from 0 on"),
        ({"windows": [1, 2, 3]}, "for each of the 4 layers"),
        ({"windows": [1, 2, 3, -1]}, "for each of the 4 layers"),
        ({"windows": []}, "for each of the 4 layers"),
        ({"windows": [1, 2, True, None]}, "for each of the 4 layers"),
        ({"summary_weight": -0.5}, "summary_weight=-0.5"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"raw_window": "row"}, "raw_window='row': expected chunk or token"),
        ({"chunk": 2.5}, "chunk=2.5"),
        ({"summary_bypass": "no"}, "summary_bypass='no': expected true or false"),
    ],
)
def test_sizes_that_make_no_decoder(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Qwen3KsaConfig(**decoders.SIZES, **settings)
