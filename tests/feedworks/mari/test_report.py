"""The pages of a run: they stand alone, and show every site, refusal, comparison and timing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from feedworks.mari.config import resolve
from feedworks.mari.report import write_report
from feedworks.storage import read_json

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in {"p", "li", "dd", "dt", "td", "th"}:
            self.open.pop()
        assert self.open, tag
        assert self.open.pop() == tag


@pytest.fixture(scope="module", params=["trained", "outside", "sites"])
def text(request: pytest.FixtureRequest) -> str:
    if request.param == "sites":
        run = request.getfixturevalue("trained_run")
        (page,) = run.glob("work/runs/*/sites/sites.html")
    else:
        page = request.getfixturevalue(f"{request.param}_run") / "report.html"
    content: str = page.read_text()
    return content


def test_a_page_is_valid_and_stands_alone(text: str) -> None:
    assert text.lower().startswith("<!doctype html")
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert "<script" not in text
    parser = Balanced()
    parser.feed(text)
    assert not parser.open


@pytest.mark.parametrize(
    "section", ["The coloured graph", "Products that cost less", "Products that stay whole"]
)
def test_every_page_shows_what_was_cut(text: str, section: str) -> None:
    assert section in text
    assert 'class="graph"' in text


def test_the_report_of_a_trained_ranker_has_every_section(trained_run: Path) -> None:
    text = (trained_run / "report.html").read_text()
    for section in ("Test metrics", "Equality", "Time of one request", "Learning curves", "Settings"):
        assert section in text
    for said in ("logistic", "item_rate", "bfloat16", "MaRI, fragmented", "VanI", "UOI", "over rows"):
        assert said in text
    (sites,) = trained_run.glob("work/runs/*/sites/sites.json")
    for site in read_json(sites)["sites"]:
        assert f">{site['node']}<" in text


def test_the_report_of_a_model_from_outside_has_no_test_metrics(outside_run: Path) -> None:
    text = (outside_run / "report.html").read_text()
    assert "Test metrics" not in text
    assert "60 | 12 → 32" in text


def test_what_is_not_finite_or_not_a_product_is_shown_too(outside_run: Path, tmp_path: Path) -> None:
    (work,) = (outside_run / "work" / "runs").iterdir()
    sites, verdict = read_json(work / "sites" / "sites.json"), read_json(work / "verdict" / "verdict.json")
    bench = read_json(work / "bench" / "bench.json")
    site = {
        **sites["sites"][0],
        "kind": "attention",
        "flops": {},
        "helped": ["batch_norm"],
        "shared": "linear_9",
    }
    sites["sites"].append(site)
    verdict["rows"][0]["error"], verdict["equal"] = None, False
    bench["rows"] += [{**row, "compiled": True} for row in bench["rows"]]
    write_report(
        tmp_path / "r.html",
        sites=sites,
        verdict=verdict,
        bench=bench,
        quality={},
        history=[],
        config=resolve("tiny"),
    )
    text = (tmp_path / "r.html").read_text()
    for said in ("keys and values once", "behind batch_norm; one product with linear_9", "MaRI, compiled"):
        assert said in text
