"""The bench prints what it says, goes on where it was, and on planted data orders the arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from feedworks.ocarm.bench import main


def rows(*words: str) -> list[dict[str, Any]]:
    found = CliRunner().invoke(main, words, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_the_sweep_prints_a_row_per_weight_and_repeats(tmp_path: Path) -> None:
    words = ["lambda", "--users", "150", "--preset", "tiny", "--seed", "0", "--work", str(tmp_path)]
    words += ["--weight", "0", "--weight", "2", "--set", "student.epochs=1", "--set", "teacher.epochs=1"]
    found = rows(*words)
    assert [row["weight"] for row in found] == [0, 2]
    for row in found:
        assert (row["op"], row["noise"], row["users"], row["arm"]) == ("lambda", "middle", 150, "ocarm")
        low, high = row["auc_lt1"][1:]
        assert 0 <= low <= row["auc_lt1"][0] <= high <= 1
        assert len(row["share_lt7"]) == len(row["gain_lt7"]) == 3
    assert rows(*words) == found


@pytest.mark.slow
def test_upper_bound_student_and_base_stand_in_this_order(tmp_path: Path) -> None:
    found = rows(
        *("planted", "--noise", "middle", "--users", "3000", "--seed", "0", "--seed", "1"),
        *("--arm", "base", "--arm", "ocarm", "--arm", "upper", "--work", str(tmp_path)),
    )
    base, ours, upper = ([row[f"auc_lt{days}"][0] for days in (1, 7)] for row in found)
    assert all(b + 0.01 < o < u - 0.005 for b, o, u in zip(base, ours, upper, strict=True))
    assert min(found[1]["gain_lt1"][1], found[1]["gain_lt7"][1]) > 0


def test_arms_that_cannot_be_compared_are_refused_before_training(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["planted", "--arm", "base", "--arm", "ocarm", "--work", str(tmp_path)])
    assert found.exit_code == 2
    assert "the share recovered needs upper too" in found.output
    assert not list(tmp_path.iterdir())
