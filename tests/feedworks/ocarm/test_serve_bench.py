"""The load bench, whole: a service, a Redis that is killed and comes back, rows with no error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from feedworks.ocarm import drawn, serve_bench

ROOT = Path(__file__).resolve().parents[3]


def test_requests_are_seeded() -> None:
    bodies = serve_bench.request_bodies(50, 3, seed=1)
    assert bodies == serve_bench.request_bodies(50, 3, seed=1) != serve_bench.request_bodies(50, 3, seed=2)
    users = [user for body in bodies for user in json.loads(body)["users"]]
    assert len(users) == 3 * serve_bench.NUM_BODIES
    assert {user["user_id"] for user in users} == set(range(50))


def test_drawn_rows_are_full_and_in_range() -> None:
    tables = drawn.draw_tables(20, seed=0)
    for view in drawn.SCHEMA.views:
        table = tables[view.name]
        assert [table.schema.field(f.name).type for f in view.features] == [
            f.arrow_type for f in view.features
        ]
        for feature in view.features:
            if feature.is_list:
                assert {len(row) for row in table[feature.name].to_pylist()} == {
                    drawn.LIST_LENGTHS[view.name]
                }
    assert max(tables["user_profile"]["activity"].to_pylist()) <= 15


def test_no_request_fails_while_the_store_is_killed_and_comes_back() -> None:
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    words = ["-m", "feedworks.ocarm.serve_bench", "--users", "200", "--clients", "4", "--deadline-ms", "200"]
    result = subprocess.run(
        [sys.executable, *words, "--seconds", "1", "--outage", "4"],
        env={**os.environ, "PYTHONPATH": sources},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    filled, steady, outage = map(json.loads, result.stdout.splitlines())
    assert filled["rows"] == 600
    assert steady["errors"] == outage["errors"] == 0
    assert steady["requests"] > 0
    assert outage["gone_answers"] > 0
    assert outage["gone_degraded"] == outage["gone_answers"]
    assert set(outage["gone_reasons"]) <= {"store:down", "store:off", "store:slow"}
    assert outage["back_after_start_s"] < 5
