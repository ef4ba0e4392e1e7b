"""Flat metrics by hand: which split, which place, which arm over which, and when a gate closes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from feedworks.ksa import evaluation
from feedworks.ksa.config import KsaConfig, resolve
from feedworks.ksa.evaluation import Measured
from feedworks.ksa.needles import Needle
from feedworks.ksa.scoring import CacheSize
from feedworks.storage import write_json

NONE = np.zeros(0, np.int32)


def settings(*overrides: str) -> KsaConfig:
    return resolve("tiny", ["evaluation.bootstrap=10", *overrides])


def needle(task: str, length: int, depth: float | None) -> Needle:
    return Needle(task, length, depth, "", "", ("",), NONE, NONE)


def test_losses_are_those_of_their_split_and_places_and_a_ratio_is_ours_over_theirs() -> None:
    cfg = settings("evaluation.seq_len=9", "evaluation.buckets=2,5")
    assert evaluation.buckets(cfg) == [(0, 2), (2, 5), (5, 8)]
    ours_RT = np.array([[0.0, 0, 1, 1, 1, 2, 2, 2]] * 3)
    losses = {"ksa": {"valid": ours_RT + 1, "test": ours_RT}, "full": {"valid": ours_RT, "test": 2 * ours_RT}}
    measured = {arm: Measured(loss_RT, np.zeros(1), None) for arm, loss_RT in losses.items()}
    found = evaluation._loss_metrics(measured, cfg)
    assert (found["heldout/ksa/loss"], found["valid/ksa/loss"]) == (9 / 8, 17 / 8)
    assert found["heldout/full/perplexity"] == pytest.approx(math.exp(9 / 4))
    by_place = [found[f"position/ksa/perplexity@{high}"] for high in (2, 5, 8)]
    assert by_place == pytest.approx([1, math.e, math.e**2])
    names = ("ratio/full/loss", "ratio/full/loss/ci_low", "ratio/full/loss/ci_high")
    assert [found[name] for name in names] == pytest.approx([0.5] * 3)
    assert "ratio/ksa/loss" not in found


def test_needles_are_counted_where_they_belong() -> None:
    cfg = settings("needles.tasks=single,frequent", "needles.lengths=64,128")
    cells = [("single", 64, 0.0), ("single", 64, 1.0), ("single", 128, 0.0), ("frequent", 128, None)]
    needles, value_N = [needle(*cell) for cell in cells], np.array([1.0, 0.0, 0.5, 0.25])
    assert evaluation.grid(needles, value_N, "single", cfg) == [[1.0, 0.5], [0.0, None]]
    assert evaluation.grid(needles, value_N, "frequent", cfg) == [[None, 0.25]]
    measured = {"ksa": Measured({}, value_N, 1 - value_N), "full": Measured({}, value_N, None)}
    found = evaluation._needle_metrics(measured, needles, cfg)
    assert found["needle/ksa/exact"] == 1 - found["needle/ksa/recall"] == 7 / 16
    assert found["needle_single/ksa/exact"] == 0.5
    assert found["needle_frequent/full/exact"] == 0.25
    assert found["needle_length/ksa/exact@64"] == 0.5
    assert found["needle_length/ksa/recall@128"] == 1 - 0.375
    assert not any(name.startswith("needle/full/recall") for name in found)


def test_bytes_of_full_attention_are_divided_by_ours() -> None:
    sizes = {("ksa", 64): CacheSize(110, 100, 100), ("full", 64): CacheSize(440, 430, 400)}
    found = evaluation._cache_metrics(sizes)
    assert found["cache/ksa/slack@64"] == pytest.approx(0.1)
    assert (found["cache/ksa/ratio@64"], found["cache/ksa/formula_ratio@64"]) == (4, 4)
    assert found["cache/full/ratio@64"] == 1


def test_gates_close_behind_their_limits_and_look_at_every_length(tmp_path: Path) -> None:
    cfg = settings("gate.max_loss_ratio=1.5", "gate.min_needle=0.25")
    limits = {"ratio/full/loss": 1.5, "decode/ksa/error": cfg.gate.max_decode_error}
    slack = {"cache/ksa/slack@64": 0.0, "cache/ksa/slack@128": cfg.gate.max_cache_slack}
    limits |= slack | {"cache/ksa/slack@256": 0.0, "needle/ksa/recall": 0.25}

    def shortcomings(**changed: float) -> list[str]:
        write_json(tmp_path / "metrics.json", limits | changed)
        return evaluation.shortcomings(tmp_path, cfg)

    assert shortcomings() == []
    for name in ("ratio/full/loss", "decode/ksa/error", "cache/ksa/slack@128"):
        assert len(shortcomings(**{name: limits[name] * 1.01})) == 1
    assert len(shortcomings(**{"needle/ksa/recall": 0.24})) == 1
    del limits["ratio/full/loss"]
    assert shortcomings() == [], "a run without the baseline has no ratio"
