"""More events than memory holds, under a limit that a whole read does not survive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from feedworks.errors import FeedworksError
from feedworks.metrics.memory import run_limited
from feedworks.recochain.prepare_bench import write_events
from feedworks.validation.gate import require_valid

ROOT = Path(__file__).resolve().parents[3]
HUNGRY = "held = bytearray(256 << 20); held[:] = b'x' * len(held); print(len(held))"


@pytest.fixture
def cgroups():
    try:
        run_limited(["true"], 64 << 20)
    except FeedworksError as error:
        pytest.skip(str(error))


def test_the_limit_is_hard_and_what_was_held_is_told(cgroups):
    fed = run_limited([sys.executable, "-c", HUNGRY], 1024 << 20)
    assert fed.returncode == 0
    assert 256 << 20 <= fed.peak_bytes < 1024 << 20
    starved = run_limited([sys.executable, "-c", HUNGRY], 128 << 20)
    assert starved.killed
    assert starved.peak_bytes <= 128 << 20


def test_the_events_keep_their_contract(tmp_path):
    write_events(tmp_path, 5000, 20, 50, seed=1)
    rows = require_valid(tmp_path).rows
    assert rows["users"] == 250
    assert 4000 < rows["interactions"] < 6000


@pytest.mark.slow
def test_validation_and_preparation_outlive_a_whole_read(cgroups):
    sizes = ["--events", "20000000", "--limit-mb", "450", "--items", "20000"]
    words = ["-m", "feedworks.recochain.bench", "prepare", *sizes]
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": sources}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = {row["op"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert [row["killed"] for row in rows.values()] == [False, False, True], rows
    assert rows["read whole"]["table_bytes"] > rows["read whole"]["limit_bytes"]
