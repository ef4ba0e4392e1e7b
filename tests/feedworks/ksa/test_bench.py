"""The bench: its commands are there, and the bytes of the cache are the formula's."""

from __future__ import annotations

import json

from click.testing import CliRunner

from feedworks.ksa.bench import main


def test_every_bench_is_a_command() -> None:
    assert set(main.commands) == {"cache", "decode", "learn", "serve"}


def test_bytes_of_the_cache_are_those_of_the_formula() -> None:
    result = CliRunner().invoke(main, ["cache", "--length", "4096"], catch_exceptions=False)
    rows = {row["model"]: row for row in map(json.loads, result.output.splitlines())}
    assert set(rows) == {"ksa", "hybrid", "full"}
    for row in rows.values():
        assert row["held_bytes"] == row["formula_bytes"] <= row["bytes"] <= 1.05 * row["formula_bytes"]
    assert round(rows["hybrid"]["formula_ratio"], 2) == 1.88
