"""The bench of the service, whole: three servers, streams, the cache's bytes, clients that leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from feedworks.errors import FeedworksError
from feedworks.ksa import serve_bench, serve_memory, serve_models
from feedworks.ksa.serve_models import FULL, OURS, TRANSFORMERS, Server, Shape
from feedworks.serving.stream_load import Answered, StreamLoad

ROOT = Path(__file__).resolve().parents[3]
PROMPT, ANSWER, LEAVING = 72, 10, 12
PROVIDERS = [OURS, FULL, TRANSFORMERS]
OPTIONS = {"--prompt": PROMPT, "--answer": ANSWER, "--leaving": LEAVING, "--window": 2, "--threads": 1}

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ended() -> subprocess.CompletedProcess[str]:
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    words = [word for name, value in OPTIONS.items() for word in (name, str(value))]
    return subprocess.run(
        [sys.executable, "-m", "feedworks.ksa.bench", "serve", *words, "--streams", "1", "--streams", "3"],
        env={**os.environ, "PYTHONPATH": sources},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


@pytest.fixture(scope="module")
def rows(ended: subprocess.CompletedProcess[str]) -> Rows:
    assert ended.returncode == 0, ended.stderr
    found: Rows = {}
    for row in map(json.loads, ended.stdout.splitlines()):
        found.setdefault(row["op"], []).append(row)
    return found


def test_all_tokens_came(rows: Rows) -> None:
    for row in rows["serve_stream"]:
        assert row["answers"] == 3
        assert row["tokens"] == row["answers"] * ANSWER
        assert 0 < row["first_p50_s"] <= row["first_p99_s"]
        assert row["tokens_per_s"] > 0
        assert row["prompt_tokens_per_s"] > 0
        assert row["decode_tokens_per_s"] > 0
        assert 1 <= row["decoding_at_once"] <= row["shape"]["streams"]
    shapes = [(row["provider"], row["shape"]) for row in rows["serve_stream"]]
    assert shapes == [
        (name, {"streams": streams, "prompt": PROMPT, "answer": ANSWER})
        for streams in (1, 3)
        for name in PROVIDERS
    ]
    assert set(rows["serve_stream"][0]["throughput"]) == {FULL, TRANSFORMERS}


def test_the_bytes_of_a_stream(rows: Rows) -> None:
    found = {row["provider"]: row for row in rows["serve_memory"]}
    assert list(found) == PROVIDERS
    for row in found.values():
        assert 0 < row["held_bytes"] <= row["formula_bytes"] <= row["allocated_bytes"]
    # Four layers, two heads of 64, keys and values in fp32; the last token is never read.
    assert found[FULL]["formula_bytes"] == (PROMPT + ANSWER - 1) * 4 * 2 * 2 * 64 * 4
    peer = found[TRANSFORMERS]
    assert peer["held_bytes"] == peer["formula_bytes"] == peer["allocated_bytes"]
    assert set(found[OURS]["ratio"]) == {"held", "formula", "allocated"}
    assert found[OURS]["ratio"]["formula"] > 1


def test_clients_that_left_took_nothing_with_them(rows: Rows) -> None:
    assert [row["provider"] for row in rows["serve_leaving"]] == [OURS, FULL]
    for row in rows["serve_leaving"]:
        assert row["shape"] == {"clients": LEAVING, "at_once": 3}
        assert row["start_bytes"] == row["end_bytes"] == 0
        assert row["back_s"] >= 0
        assert row["events_read"] >= LEAVING
        assert row["gone"] > LEAVING / 2  # on a busy machine an answer may be whole before its client leaves


def test_it_says_how_far_it_is_and_ends_with_tables(
    ended: subprocess.CompletedProcess[str], rows: Rows
) -> None:
    said = ended.stderr
    assert f"prompt {PROMPT}: starting {TRANSFORMERS}" in said
    assert f"round 1/1: {OURS}, tokens: {3 * ANSWER}/{3 * ANSWER}" in said
    for op, found in rows.items():
        table = re.search(rf"^{op}\n\n((?:\|.*\n)+)", said, re.MULTILINE)
        assert table is not None
        assert len(table[1].splitlines()) == 2 + len(found)


WRONG = {
    "no tokens": (["--prompt", "0"], "'--prompt': 0"),
    "no answer": (["--answer", "0"], "'--answer': 0"),
    "no streams": (["--streams", "8", "--streams", "0"], "'--streams': 0"),
    "text": (["--window", "all"], "'--window': 'all'"),
    "too long": (["--prompt", "64", "--prompt", "2000000"], "--prompt 2000000 --answer 64: expected 8 .. "),
    "too short": (["--prompt", "3", "--answer", "2"], "--prompt 3 --answer 2: expected 8 .. "),
    "unknown": (["--prompts", "3"], "--prompts"),
}


@pytest.mark.parametrize(("words", "told"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_told_in_one_line(words: list[str], told: str) -> None:
    result = CliRunner().invoke(serve_bench.serve, words)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert result.stdout == ""


def test_a_server_that_says_less_than_it_was_asked_for_ends_the_bench(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = StreamLoad([Answered(0, 1, 2, ANSWER - 1)], 2)
    monkeypatch.setattr(serve_bench, "run_streams", lambda *_, **__: load)
    with pytest.raises(FeedworksError, match=f"full: an answer has {ANSWER - 1} tokens, asked for {ANSWER}"):
        serve_bench.measure({FULL: Server("", "", [])}, Shape(8, ANSWER, 2), 1, 1)


def test_bytes_that_stay_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of an engine that keeps a slot: not back, and how much there is."""
    held = iter([0.0] + [512.0] * 10_000)
    gauges = {serve_memory.ALLOCATED: 1024.0, serve_memory.RUNNING: 0.0, serve_memory.WAITING: 0.0}
    monkeypatch.setattr(serve_memory, "scrape", lambda *_: gauges | {serve_memory.USED: next(held)})
    monkeypatch.setattr(serve_memory, "leave", lambda *_, **__: 1)
    monkeypatch.setattr(serve_memory, "BACK_WITHIN_S", 0.05)
    servers = dict.fromkeys((OURS, FULL), Server("", "", []))
    row = next(serve_memory.leaving_rows(servers, Shape(8, 8, 2), 2, 2, "cpu"))
    assert (row["start_bytes"], row["end_bytes"], row["back_s"]) == (0, 512, None)


def test_prompts_are_seeded_and_a_client_that_leaves_asks_for_all_there_is_room_for() -> None:
    shape = Shape(600, 8, 2)
    assert serve_models.request_bodies(shape, 1) == serve_models.request_bodies(shape, 1)
    assert serve_models.request_bodies(shape, 1) != serve_models.request_bodies(shape, 2)
    asked = json.loads(serve_models.leaving_body(shape))
    assert len(asked["prompt"]) + asked["max_tokens"] == shape.context
    assert len(asked["prompt"]) == serve_models.LEAVING_PROMPT


def test_rates_of_streams_by_hand() -> None:
    """Clients wait in the first four seconds, and stream in the six from the second one on."""
    answers = [Answered(0.0, 2.0, 6.0, 9), Answered(0.0, 4.0, 8.0, 11)]
    loads = {OURS: StreamLoad(answers, 10.0), FULL: StreamLoad(answers, 40.0)}
    ours, full = serve_bench.stream_rows(loads, 2, Shape(100, 10, 2), "cpu")
    assert (ours["tokens_per_s"], full["tokens_per_s"]) == (2.0, 0.5)
    assert ours["throughput"] == {FULL: 4.0}
    assert ours["prompt_tokens_per_s"] == 2 * 100 / 4
    assert ours["decode_tokens_per_s"] == (20 - 2) / 6
    assert ours["decoding_at_once"] == round(8 / 6, 2)
    assert (ours["first_p50_s"], ours["answers"], ours["tokens"]) == (3.0, 2, 20)
    assert "throughput" not in full
