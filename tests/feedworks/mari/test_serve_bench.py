"""The load bench, whole: four servers, real requests, equal scores, one row each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from feedworks.errors import FeedworksError
from feedworks.mari import serve_bench

ROOT = Path(__file__).resolve().parents[3]


def test_requests_are_seeded() -> None:
    for (user, item), (again, _) in zip(
        serve_bench.random_requests(7, 3), serve_bench.random_requests(7, 3), strict=True
    ):
        assert (user.shape, item.shape) == ((32,), (7, 32))
        assert np.array_equal(user, again)


def test_other_scores_end_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = serve_bench.random_requests(2, 0)
    run = serve_bench._Run(
        dict.fromkeys((p.target for p in serve_bench.PROVIDERS.values()), ""), requests, ""
    )
    monkeypatch.setattr(run, "_ask", lambda name, number: [0.0, 1.0 if name == "bentoml_lists" else 0.0])
    with pytest.raises(FeedworksError, match="bentoml_lists and feedworks_bytes score request 0 differently"):
        run.compare()


def test_every_provider_answers_the_same_without_errors() -> None:
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    words = ["-m", "feedworks.mari.bench", "serve", "--candidates", "20", "--steady", "1"]
    result = subprocess.run(
        [sys.executable, *words, "--clients", "4", "--seconds", "1", "--rounds", "1"],
        env={**os.environ, "PYTHONPATH": sources},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["provider"] for row in rows] == [*serve_bench.PROVIDERS, "feedworks_bytes"]
    assert rows[-1]["op"] == "serve_score_steady"
    for row in rows:
        assert row["errors"] == 0
        assert row["requests"] > 0
        assert 0 < row["p20_s"] <= row["p50_s"] <= row["p80_s"] <= row["p99_s"]
    assert set(rows[0]["throughput"]) == set(serve_bench.PROVIDERS) - {"feedworks_bytes"}
