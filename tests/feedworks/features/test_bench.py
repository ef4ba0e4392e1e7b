"""The benches run and say what they found; how fast is for their rows to say."""

import json

import pytest
from click.testing import CliRunner

from feedworks.features.bench import main


def run(*words):
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exception is None, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_reads_are_compared_before_they_are_timed():
    rows = run("reads", "--entities", 20, "--stored", 50, "--repeats", 4, "--rounds", 2)
    assert {row["provider"] for row in rows} >= {"feast_packed", "packed"}
    assert all(ratio > 0 for row in rows for ratio in row.get("speedup", {}).values())


@pytest.mark.slow
def test_a_table_is_materialised_into_every_store():
    words = ("--store", "packed", "--store", "redis", "--store", "sqlite")
    rows = run("materialize", "--rows", 3000, *words)
    assert [row["provider"] for row in rows] == ["packed", "redis", "sqlite"]
    assert all(row["rows_per_s"] > 0 for row in rows)


def test_a_short_replay_loses_nothing():
    (row,) = run("replay", "--rate", 200, "--seconds", 1, "--rooms", 20)
    assert (row["num_pushed"], row["num_lost"], row["num_backwards"], row["num_wrong"]) == (200, 0, 0, 0)
