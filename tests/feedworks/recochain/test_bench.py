"""The benches: every provider finds what exhaustive scoring finds; wrong results stop the bench."""

from __future__ import annotations

import json

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from feedworks.recochain import bench
from feedworks.recochain.trie import Trie
from feedworks_kernels.beam_step.searches import Decoded, HfPrefix, Static


def small_catalogue(num_items=3000, num_codes=16, levels=3):
    return Trie.build(np.random.default_rng(0).integers(0, num_codes, (num_items, levels)), num_codes)


def searches(trie, width):
    return {
        bench.OURS: lambda model: bench.search(trie, model, width),
        "static": lambda model: Static(trie.levels, trie.num_codes).decode(model, width),
        "hf_prefix": lambda model: HfPrefix(trie.levels).decode(model, width),
    }


def model_for(trie, rows=256):
    generator = torch.Generator().manual_seed(1)
    logits = [torch.randn(rows, trie.num_codes, generator=generator) for _ in range(trie.num_levels)]
    return bench._model_of_prefix(logits)


@pytest.mark.parametrize("provider", ["feedworks", "static", "hf_prefix"])
def test_256_beams_equal_exhaustive_scoring(provider):
    # At most 16 * 16 prefixes of two codes exist, so 256 beams lose none of them.
    trie = small_catalogue()
    model, sids = model_for(trie), trie.sids()
    exhaustive = sum(
        torch.log_softmax(model(step, sids[:, :step]), dim=1).gather(1, sids[:, step : step + 1]).squeeze(1)
        for step in range(3)
    )
    best = exhaustive.topk(256)
    found = searches(trie, 256)[provider](model)
    torch.testing.assert_close(found.score_W, best.values, rtol=0, atol=1e-5)
    assert set(trie.find(found.sid_WL).tolist()) == set(best.indices.tolist())


@pytest.mark.parametrize(("num_items", "levels", "width"), [(3000, 3, 7), (40, 3, 256), (500, 4, 50)])
def test_providers_agree(num_items, levels, width):
    trie = small_catalogue(num_items, levels=levels)
    model = model_for(trie)
    results = {name: run(model) for name, run in searches(trie, width).items()}
    assert bench.compare_beams(results, trie) == {"feedworks": 0, "static": 0, "hf_prefix": 0}


def test_wrong_results_stop_the_bench():
    trie = small_catalogue(num_items=500)
    right = bench.search(trie, model_for(trie), 8)
    missing = next(sid for sid in torch.cartesian_prod(*[torch.arange(16)] * 3) if trie.find(sid[None]) < 0)
    wrong = {
        "do not exist": Decoded(torch.cat([right.sid_WL[:-1], missing[None]]), right.score_W),
        "other SIDs": Decoded(right.sid_WL[:-1], right.score_W[:-1]),
        "other scores": Decoded(right.sid_WL, right.score_W - 0.01),
    }
    for message, found in wrong.items():
        with pytest.raises(click.ClickException, match=message):
            bench.compare_beams({bench.OURS: right, "peer": found}, trie)


def rows_of(*arguments):
    result = CliRunner().invoke(bench.main, arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines()]


def test_decode_rows():
    rows = rows_of("decode", "--codes=16", "--codes=32", "--items=2000", "--beams=8", "--repeats=2")
    assert [row["provider"] for row in rows] == ["feedworks", "static", "hf_prefix"] * 2
    for row in rows:
        assert {"op", "provider", "shape", "device", "p20_s", "p50_s", "p80_s"} <= set(row)
        assert row["invalid"] == 0
    assert set(rows[0]["speedup"]) == {"static", "hf_prefix"}
    assert rows[0]["index_bytes"] < 2000 * 24


def test_quantise_rows():
    rows = rows_of("quantise", "--widths=8", "--codes=16", "--codes=20", "--gflop=0.002", "--repeats=2")
    names = ["feedworks", "torch_blocks", "faiss_flat"]
    assert [row["provider"] for row in rows] == [*names, "faiss_residual_quantizer", *names]
    assert all(row["error"] <= 1e-3 for row in rows)
    assert set(rows[0]["speedup"]) == {*names[1:], "faiss_residual_quantizer"}


def test_wrong_codes_stop_the_bench():
    codes = np.zeros((1000, 3), dtype=np.int64)
    near, wrong = codes.copy(), codes.copy()
    near[0, 2] = 1
    wrong[:2, 0] = 1
    assert bench.compare_codes({bench.OURS: codes, "near": near}) == {bench.OURS: 0.0, "near": 0.001}
    with pytest.raises(click.ClickException, match=r"wrong: 0\.20% of the vectors"):
        bench.compare_codes({bench.OURS: codes, "wrong": wrong})
