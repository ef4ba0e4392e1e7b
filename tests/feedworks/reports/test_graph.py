"""Drawn graphs: nothing overlaps, edges run down, the text is valid and stands alone."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from feedworks.reports.graph import Box, draw_graph
from feedworks.reports.html import Report
from feedworks.reports.layers import GAP, arrange


def box(name: str, *inputs: str, **more: object) -> Box:
    return Box(name, name, "", name, "var(--series-1)", inputs, **more)


def random_graph(seed: int, size: int) -> dict[str, list[str]]:
    rng = random.Random(seed)
    return {f"n{i}": [f"n{j}" for j in range(max(0, i - 8), i) if rng.random() < 0.25] for i in range(size)}


@pytest.mark.parametrize("size", [1, 20, 150])
def test_boxes_of_a_layer_stay_apart_and_edges_run_down(size: int) -> None:
    inputs = random_graph(size, size)
    widths = {name: 20.0 + 7 * (index % 9) for index, name in enumerate(inputs)}
    layout = arrange(inputs, widths)
    for name, sources in inputs.items():
        assert all(layout.layer[source] < layout.layer[name] for source in sources)
        for source in sources:
            assert len(layout.bends[source, name]) == layout.layer[name] - layout.layer[source] - 1
    for layer in set(layout.layer.values()):
        row = sorted((layout.x[name], widths[name]) for name in inputs if layout.layer[name] == layer)
        for (left, width), (right, other) in pairwise(row):
            assert right - left >= (width + other) / 2 + GAP - 1e-6
    assert min(layout.x[name] - widths[name] / 2 for name in inputs) >= -1e-6


def test_two_crossed_edges_are_uncrossed() -> None:
    layout = arrange({"a": [], "b": [], "c": ["b"], "d": ["a"]}, dict.fromkeys("abcd", 10.0))
    assert (layout.x["a"] < layout.x["b"]) == (layout.x["d"] < layout.x["c"])


def test_a_source_stands_just_above_its_reader() -> None:
    layout = arrange({"a": [], "b": ["a"], "c": ["b"], "late": [], "d": ["c", "late"]}, dict.fromkeys(
        ("a", "b", "c", "d", "late"), 10.0))  # fmt: skip
    assert layout.layer["late"] == layout.layer["d"] - 1


def test_the_picture_is_valid_and_escaped() -> None:
    boxes = [box("a<b>"), box("c&", "a<b>", frame="var(--series-3)", dashed=True)]
    svg = draw_graph('a "title"', boxes)
    root = ElementTree.fromstring(svg)
    assert [text.text for text in root.iter("{http://www.w3.org/2000/svg}title")] == ["a<b>", "c&"]
    assert svg == draw_graph('a "title"', boxes)
    report = Report("t")
    report.add_drawing("Graph", svg, {"<user>": "var(--series-1)"}, "a note")
    assert "&lt;user&gt;" in report.html()
    assert svg in report.html()


def test_no_boxes_make_an_empty_picture() -> None:
    assert ElementTree.fromstring(draw_graph("nothing", [])).tag.endswith("svg")
