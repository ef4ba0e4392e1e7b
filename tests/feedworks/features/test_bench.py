"""The benches run, and the packed store is as fast as it is said to be."""

import json

import pytest
from click.testing import CliRunner

from feedworks.features.bench import main


def run(*words):
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exception is None, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_packed_rows_read_at_least_ten_times_as_fast():
    rows = run("reads", "--entities", 500, "--stored", 800, "--repeats", 20, "--rounds", 4)
    speedup = {row["provider"]: row["speedup"] for row in rows if "speedup" in row}
    for provider in ("feast_packed", "packed"):
        assert min(speedup[provider].values()) >= 10, rows


@pytest.mark.slow
def test_a_table_is_materialised_into_every_store():
    words = ("--store", "packed", "--store", "redis", "--store", "sqlite")
    rows = run("materialize", "--rows", 3000, *words)
    assert [row["provider"] for row in rows] == ["packed", "redis", "sqlite"]
    assert all(row["rows_per_s"] > 0 for row in rows)


def test_a_short_replay_loses_nothing():
    (row,) = run("replay", "--rate", 200, "--seconds", 1, "--rooms", 20)
    assert (row["num_pushed"], row["num_lost"], row["num_backwards"], row["num_wrong"]) == (200, 0, 0, 0)
