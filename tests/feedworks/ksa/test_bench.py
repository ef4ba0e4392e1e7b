"""The bench: its commands are there, and the bytes of the cache are the formula's."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from feedworks.ksa.bench import main


def test_every_bench_is_a_command() -> None:
    assert set(main.commands) == {"cache", "decode", "learn", "serve"}


def test_bytes_of_the_cache_are_those_of_the_formula() -> None:
    result = CliRunner().invoke(main, ["cache", "--length", "4096"], catch_exceptions=False)
    rows = {row["model"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert set(rows) == {"ksa", "hybrid", "full"}
    for row in rows.values():
        assert row["held_bytes"] == row["formula_bytes"] <= row["bytes"] <= 1.05 * row["formula_bytes"]
    assert round(rows["hybrid"]["formula_ratio"], 2) == 1.88
    assert result.stderr.splitlines()[0].startswith("| op | model | tokens | bytes |")
    assert len(result.stderr.splitlines()) == 2 + len(rows)


def test_steps_of_decoding() -> None:
    words = ["decode", "--length", "16", "--batch", "2", "--repeats", "1"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["provider"] for row in rows] == ["ksa", "hybrid", "full", "transformers"]
    assert all(row["shape"] == {"tokens": 16, "batch": 2} for row in rows)
    said = result.stderr.splitlines()
    assert said[0] == "16 tokens, 2 at once: 2 rounds of 8 steps"
    assert said[1].startswith("| op | provider | tokens | batch | p20_s |")


@pytest.mark.parametrize(
    "words",
    [
        ["cache", "--length", "0"],
        ["decode", "--length", "-1"],
        ["decode", "--batch", "0"],
        ["decode", "--repeats", "0"],
        ["decode", "--threads", "0"],
        ["decode", "--dtype", "int8"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_told_in_one_line(words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert words[1] in line
    assert words[2] in line


@pytest.mark.parametrize("name", ["cache", "decode", "serve"])
def test_help_says_what_every_option_is(name: str) -> None:
    text = CliRunner().invoke(main, [name, "--help"], catch_exceptions=False).stdout
    for option in main.commands[name].params:
        assert f"{option.opts[0]} " in text
        assert getattr(option, "help", ""), option.name
