"""The report of a run: one file with every section that the run has something for."""

from __future__ import annotations

import re

import pytest

from feedworks.recochain.evaluation import METHODS
from feedworks.storage import read_json


@pytest.fixture(scope="module")
def text(finished_run):
    return (finished_run / "report.html").read_text()


def test_it_stands_alone(text):
    assert text.lower().startswith("<!doctype html")
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert "<script" not in text


@pytest.mark.parametrize(
    "section",
    [
        *("Test metrics", "Relative gain of reranking", "Novel targets only", "Learning curves"),
        *("Codebooks", "Use of codes", "Settings", "Slices, recall@10", "Recall@10"),
    ],
)
def test_it_has_every_section(text, section):
    assert section in text


def test_it_names_every_method_and_setting(text):
    for said in (*METHODS, "search.beam", "rank.weight", "tokenizer.codes"):
        assert said in text


def test_a_run_without_a_sweep_shows_none(text):
    assert "Beam and retrieval length" not in text


def test_numbers_are_those_of_the_metrics(text, finished_run):
    users = int(read_json(finished_run / "metrics.json")["test/novel/num_users"])
    assert f"{users:,} users whose target is not in the window read." in text
