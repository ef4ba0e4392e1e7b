"""Figures: what is drawn stands where the numbers say, in colours of the page."""

import re

import numpy as np
import pytest

from feedworks.metrics.ranking import Interval
from feedworks.reports import figures


def _paths(svg, colour):
    """Vertices of the paths drawn in a colour variable, in order of drawing."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="[^"]*var\(--{colour}\)', svg)
    return [np.array(re.findall(r"([-\d.]+) ([-\d.]+)", path), dtype=float) for path in found]


def _texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def _is_affine(data, drawn):
    slope, offset = np.polyfit(data, drawn, 1)
    return np.abs(slope * np.asarray(data) + offset - drawn).max() < 1e-3


def test_a_line_passes_through_its_points():
    xs, ys = [0.0, 1.0, 2.0, 5.0, 9.0], [3.0, 1.0, 4.0, 1.5, 9.2]
    figure = figures.lines("t", {"a": zip(xs, ys, strict=True)})
    (drawn,) = [path for path in _paths(figure.svg, "series-1") if len(path) == 5]
    assert _is_affine(xs, drawn[:, 0])
    assert _is_affine(ys, drawn[:, 1])


def test_a_log_axis_is_logarithmic_and_leaves_out_what_it_cannot_show():
    ys = [1.0, 10.0, 0.0, 1000.0, float("nan"), -2.0, float("inf")]
    figure = figures.lines("t", {"a": list(enumerate(ys))}, log_y=True)
    (drawn,) = [path for path in _paths(figure.svg, "series-1") if len(path) == 3]
    assert _is_affine([0.0, 1.0, 3.0], drawn[:, 1])
    assert _is_affine([0, 1, 3], drawn[:, 0])


def test_curves_skip_rows_without_the_key():
    history = [{"epoch": 1, "a": 2.0}, {"epoch": 2, "a": 3.0, "b": 1.0}, {"epoch": 3, "b": None}]
    figure = figures.curves("t", history, ["a", "b"])
    assert figure.legend == ("a", "b")
    assert "epoch" in _texts(figure.svg)


def test_long_lines_are_thinned_and_keep_their_ends():
    kept = figures._drawable(((x, x) for x in range(10_001)), log_x=False, log_y=False)
    assert len(kept) <= figures.MAX_POINTS + 1
    assert (kept[0], kept[-1]) == ((0, 0), (10_000, 10_000))


def _heights(svg, colour):
    """Heights of the bars of a colour; the bars of matplotlib are closed paths of four corners."""
    return [np.ptp(path[:, 1]) for path in _paths(svg, colour) if len(path) == 4]


def test_histogram_of_few_integers_has_a_bar_for_each():
    heights = _heights(figures.histogram("t", [1, 1, 1, 2, 4, 4]).svg, "series-1")
    np.testing.assert_allclose(np.array(heights) / max(heights), [1, 1 / 3, 0, 2 / 3], atol=1e-3)


def test_histogram_of_real_numbers_counts_as_numpy():
    values = np.random.default_rng(0).normal(size=1000)
    heights = _heights(figures.histogram("t", values, num_bins=12).svg, "series-1")
    count, _ = np.histogram(values, bins=12)
    np.testing.assert_allclose(np.array(heights) / max(heights), count / count.max(), atol=1e-3)


def test_grouped_bars_by_hand():
    groups = {"all": {"a": 0.1, "b": 0.2}, "novel": {"b": Interval(0.4, 0.3, 0.45)}}
    figure = figures.grouped_bars("t", groups, y_label="Recall@5")
    assert figure.legend == ("a", "b")
    (a,), (b_all, b_novel) = _heights(figure.svg, "series-1"), _heights(figure.svg, "series-2")
    np.testing.assert_allclose([a / b_novel, b_all / b_novel], [0.25, 0.5], atol=1e-3)
    whisker = max(np.ptp(path[:, 1]) for path in _paths(figure.svg, "ink"))
    assert whisker / b_novel == pytest.approx(0.15 / 0.4, abs=1e-2)
    assert {"all", "novel", "Recall@5"} <= set(_texts(figure.svg))


def test_bars_are_as_long_as_their_values_and_say_them():
    figure = figures.bars("t", {"a": 1.0, "b": 0.25, "ours": 0.5}, ours=["ours"])
    widths = [np.ptp(path[:, 0]) for path in _paths(figure.svg, "series-8") if len(path) == 4]
    (ours,) = (np.ptp(path[:, 0]) for path in _paths(figure.svg, "series-1") if len(path) == 4)
    np.testing.assert_allclose([widths[1] / widths[0], ours / widths[0]], [0.25, 0.5], atol=1e-3)
    assert {"1.000", "0.2500", "0.5000", "ours"} <= set(_texts(figure.svg))


def test_a_bar_that_is_not_finite_has_no_length_and_says_so():
    figure = figures.bars("t", {"a": 1.0, "diverged": float("nan")})
    assert "nan" in _texts(figure.svg)


NOTHING = {
    "no rows": lambda: figures.curves("t", [], ["a"]),
    "no line": lambda: figures.lines("t", {}),
    "no point that a log axis shows": lambda: figures.lines("t", {"a": [(0, -1)]}, log_y=True),
    "no bar": lambda: figures.bars("t", {}),
    "no group": lambda: figures.grouped_bars("t", {}),
    "no number": lambda: figures.histogram("t", []),
    "no finite number": lambda: figures.histogram("t", [float("nan")]),
}


@pytest.mark.parametrize("draw", NOTHING.values(), ids=NOTHING)
def test_nothing_to_draw_is_said(draw):
    assert _texts(draw().svg) == ["no data"]


def test_colours_fonts_and_size_come_from_the_page():
    svg = figures.lines('t <&> "q"', {"a": [(0, 1), (1, 2)], "b": [(0, 2)]}, x_label="steps").svg
    assert svg.startswith('<svg class="chart" role="img" aria-label="t &lt;&amp;&gt; &quot;q&quot;"')
    assert not re.search(r"#[0-9a-f]{6}\b|font-family|<style|<metadata|<\?xml|<!DOCTYPE", svg)
    assert not re.search(r'<svg[^>]* (width|height)="', svg)
    used = set(re.findall(r"var\(--([\w-]+)\)", svg))
    assert {"series-1", "series-2", "line", "muted"} <= used
    assert "steps" in _texts(svg)


def test_labels_are_never_read_as_formulas():
    assert {"$x_$", "$5 and $6"} <= set(_texts(figures.bars("t", {"$x_$": 1, "$5 and $6": 2}).svg))


def test_a_users_own_style_changes_nothing():
    import matplotlib

    plain = figures.histogram("t", [1, 2, 2])
    with matplotlib.rc_context({"xtick.major.size": 20, "font.size": 30, "axes.grid": False}):
        assert figures.histogram("t", [1, 2, 2]) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_a_heat_map_writes_each_share_and_leaves_gaps():
    cells = [[0.0, 1.0], [0.256, None], [float("nan"), 0.5]]
    figure = figures.heat_map("t", cells, rows=["a", "b", "c"], columns=["x", "y"], x_label="tokens")
    assert {"0", "100", "26", "50", "a", "b", "c", "x", "y", "tokens"} <= set(_texts(figure.svg))
    boxes = [path for path in _paths(figure.svg, "series-1") if len(path) == 4]
    assert len(boxes) == 4
    assert "no data" in _texts(figures.heat_map("t", [[None]], rows=["a"], columns=["x"]).svg)
