"""The report as a document: whole, self-contained, escaped, equal from run to run, legible in both themes."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from feedworks.metrics.ranking import Interval
from feedworks.reports import figures
from feedworks.reports.html import Report

from .sample import methods, sample_report

VOID = {"meta", "br", "img", "path", "use", "rect"}


class Document(HTMLParser):
    """Collects tags, ids, links and the text of table cells; fails on a tag that is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.cells: list[list[str]] = []
        self.bold: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self._open):
            self.cells[-1][-1] += data
        if "strong" in self._open:
            self.bold.append(data)


@pytest.fixture(scope="module")
def html():
    return sample_report().html()


def test_tags_are_closed_and_ids_unique(html):
    document = Document(html)
    assert document.tags.count("svg") == 5
    assert len(document.ids) > 50
    assert len(document.ids) == len(set(document.ids))


def test_nothing_is_loaded_and_nothing_runs(html):
    document = Document(html)
    assert document.links
    assert all(link.startswith("#") and link[1:] in document.ids for link in document.links)
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {f"#{name}" for name in document.ids}
    assert "@import" not in html
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(document.tags)
    assert not document.handlers


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & \"b\" 'c' <img src=x onerror=alert(1)>"])
def test_text_stays_text(text):
    document = Document(sample_report(text).html())
    assert not {"script", "img"} & set(document.tags)
    assert not document.handlers
    assert any(text in cell for row in document.cells for cell in row)


@pytest.mark.parametrize(
    "text", ["$x_$ and $5", "_hidden", "书 и ещё 🎵", "", " ", "\\frac", "#000001", "x" * 300]
)
def test_any_text_draws(text):
    Document(sample_report(text).html())


def test_equal_in_another_process(html):
    code = "from sample import sample_report; import sys; sys.stdout.write(sample_report().html())"
    environment = {"PYTHONPATH": ":".join([*sys.path, str(Path(__file__).parent)]), "PYTHONHASHSEED": "7"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == html


def test_size_stays_far_below_what_a_frame_takes():
    history = [{"step": step, "loss": step * 7919 % 101} for step in range(50_000)]
    report = sample_report()
    report.add_figure("Long", *[figures.curves(f"{n}", history, ["loss"], x="step") for n in range(10)])
    assert len(report.html().encode()) < 500_000


def test_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "new" / "report.html"
    Report("first").write(path)
    Report("second").write(str(path))
    assert "<h1>second</h1>" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_metrics_table_by_hand():
    report = Report("t")
    report.add_metrics(
        "Results",
        {
            "base": {"recall@5": Interval(0.1, 0.05, 0.15), "loss": 0.5},
            "new": {"recall@5": Interval(0.2, 0.15, 0.25), "loss": 0.7},
        },
        lower_is_better=["loss"],
    )
    document = Document(report.html())
    assert document.cells == [
        ["Method", "Recall@5", "loss"],
        ["base", "0.10000.0500 to 0.1500", "0.5000"],
        ["new", "0.20000.1500 to 0.2500", "0.7000"],
    ]
    assert document.bold == ["0.5000", "0.2000"]  # base has the lower loss, new the higher recall


def test_a_table_without_a_best_says_nothing_of_bold():
    alone = Report("r")
    alone.add_metrics("Gain", {"rerank": {"recall@5": 0.1}})
    assert "Bold" not in alone.html()


def test_published_rows_carry_their_source_and_are_never_bold(html):
    document = Document(html)
    row = next(row for row in document.cells if row[0].startswith("TIGER"))
    assert row[0] == "TIGERarXiv 2305.05065, table 1"
    assert "0.0648" in row
    assert "0.0648" not in document.bold
    assert f"{methods()['rerank']['recall@10'].mean:.4f}" in document.bold


def _bold(rows, best):
    report = Report("t")
    report.add_table("x", ["name", "value"], rows, best=best)
    return Document(report.html()).bold


def test_best_cells():
    assert _bold([["a", 1], ["b", 3], ["c", None]], {"value": "max"}) == ["3"]
    assert _bold([["a", 0.10001], ["b", 0.10002], ["c", 0.2]], {"value": "min"}) == ["0.1000", "0.1000"]
    assert _bold([["a", 1], ["b", None]], {"value": "max"}) == []  # alone it is not the best of anything
    assert _bold([["a", 1], ["b", 3]], None) == []


def test_cells_read_well():
    report = Report("t")
    report.add_table(
        "x", ["a", "b"], [["n", 12101], ["f", 0.06481], ["t", True], ["none", None], ["s", "<i>"]]
    )
    cells = [row[1] for row in Document(report.html()).cells[1:]]
    assert cells == ["12,101", "0.0648", "yes", "–", "<i>"]


def test_wrong_tables_are_refused():
    with pytest.raises(ValueError, match="2 cells"):
        Report("t").add_table("x", ["a", "b"], [["only one"]])
    with pytest.raises(ValueError, match="'max' or 'min'"):
        Report("t").add_table("x", ["a", "b"], [["r", 1]], best={"c": "max"})


CSS = resources.files("feedworks.reports").joinpath("report.css").read_text()
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part))
    for part in (CSS[: CSS.index("@media")], CSS[CSS.index("@media") : CSS.index("* {")])
)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    dark, light = sorted([_luminance(one), _luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_contrast_by_hand():
    assert _contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert _contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_both_themes_are_legible(theme):
    """WCAG 2.2: 4.5 for text, 3 for what a chart draws."""
    for ground in ("page", "card", "tint"):
        assert _contrast(theme["ink"], theme[ground]) >= 7
        assert _contrast(theme["muted"], theme[ground]) >= 4.5
    for name in [name for name in theme if name.startswith("series")]:
        assert _contrast(theme[name], theme["card"]) >= 3, name


def test_every_variable_is_defined_in_both_themes(html):
    assert set(LIGHT) == set(DARK)
    assert set(re.findall(r"var\(--([\w-]+)\)", html)) - {"colour"} <= set(LIGHT)
