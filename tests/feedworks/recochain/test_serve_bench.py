"""The load bench, whole: three servers, real requests, one row each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from feedworks.recochain.serve_bench import HISTORY_LENGTHS, NUM_HISTORIES, random_histories

ROOT = Path(__file__).resolve().parents[3]


def test_histories_are_of_the_model_and_seeded(packaged_model: Path) -> None:
    histories = random_histories(packaged_model, seed=3)
    assert histories == random_histories(packaged_model, seed=3)
    assert histories != random_histories(packaged_model, seed=4)
    assert len(histories) == NUM_HISTORIES
    assert {len(history) for history in histories} <= set(range(HISTORY_LENGTHS[0], HISTORY_LENGTHS[1] + 1))
    assert {item for history in histories for item in history} <= set(range(1, 101))


def test_every_provider_answers_without_errors(packaged_model: Path) -> None:
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    words = ["-m", "feedworks.recochain.bench", "serve", "--model", str(packaged_model)]
    result = subprocess.run(
        [sys.executable, *words, "--clients", "4", "--seconds", "1", "--rounds", "1"],
        env={**os.environ, "PYTHONPATH": sources},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = {row["provider"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert set(rows) == {"feedworks", "bentoml_unbatched", "bentoml_batchable"}
    for row in rows.values():
        assert row["errors"] == 0
        assert row["requests"] > 0
        assert 0 < row["p20_s"] <= row["p50_s"] <= row["p80_s"] <= row["p99_s"]
    assert set(rows["feedworks"]["speedup"]) == {"bentoml_unbatched", "bentoml_batchable"}
