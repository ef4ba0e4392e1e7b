"""The measured bytes of the cache are the paper's formula; steps of all kinds run."""

from __future__ import annotations

import pytest
import torch

from feedworks.ksa.cache_bench import cache_rows, step_rows

# arXiv 2604.24432, the 4B shape: by the formula with the constant scratch rows.
KNOWN = {
    4096: (2.65, 1.88),
    8192: (3.98, 2.28),
    16384: (5.32, 2.56),
    32768: (6.39, 2.72),
    65536: (7.10, 2.81),
    131072: (7.53, 2.86),
}


@pytest.mark.parametrize("length", KNOWN)
def test_a_cache_has_the_bytes_of_the_formula(length):
    rows = {row["model"]: row for row in cache_rows([length])}
    for row in rows.values():
        assert row["held_bytes"] == row["formula_bytes"]
        assert 0 <= row["slack"] <= 0.05
    assert (rows["ksa"]["ratio"], rows["hybrid"]["ratio"]) == pytest.approx(KNOWN[length], abs=0.006)
    assert rows["hybrid"]["ratio"] == pytest.approx(rows["hybrid"]["formula_ratio"], rel=0.05)


def test_steps_are_timed_beside_each_other():
    rows = list(step_rows([64], [1, 2], repeats=1))
    assert [row["provider"] for row in rows] == ["ksa", "hybrid", "full", "transformers"] * 2
    assert rows[1]["speedup"].keys() == {"ksa", "full", "transformers"}
    assert all(row["p50_s"] > 0 for row in rows)


def test_an_odd_length_is_exact_too():
    for row in cache_rows([4099], torch.float32):
        assert row["held_bytes"] == row["formula_bytes"]
