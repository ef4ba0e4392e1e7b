"""Drawing on matplotlib axes and the export to SVG that takes its colours from the page.

matplotlib draws with placeholder colours; the export turns them into CSS variables of `report.css`, drops
what would leak into the page or change from run to run, and leaves text as text. Equal inputs give equal
bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

NUM_COLOURS = 8  # series colours that report.css defines
WIDTH_IN, HEIGHT_IN = 4.5, 3.0  # at 72 dots per inch: a view box of 324 x 216
INK, MUTED, GRID = "#000001", "#000002", "#000003"
_SERIES = [f"#0000{16 + index:x}" for index in range(NUM_COLOURS)]
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"}
_VARIABLES.update({colour: f"--series-{index + 1}" for index, colour in enumerate(_SERIES)})
# Any: the type of a key is a list of names in the newest matplotlib only.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "feedworks",  # without it the ids are random
    "text.parse_math": False,  # a label may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "font.size": 10.5,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


class Figure(NamedTuple):
    """One chart: `svg` has no size of its own and fills its box; `legend` is drawn by the page."""

    title: str
    svg: str
    legend: tuple[str, ...] = ()


def colour(index: int) -> str:
    """Return the placeholder of a series colour; more than `NUM_COLOURS` series repeat them."""
    return _SERIES[index % NUM_COLOURS]


def draw_figure(
    title: str, draw: Callable[[Any], None] | None, legend: tuple[str, ...] = (), height_in: float = HEIGHT_IN
) -> Figure:
    """Draw on fresh axes, or say that there is nothing to draw, and export."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    height_in = height_in if draw else 1.2
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever style the user's own settings ask for
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # the reader's font has it
        canvas = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained", facecolor="none")
        axes = canvas.subplots()
        axes.set_facecolor("none")
        if draw is None:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no data", ha="center", color=MUTED, transform=axes.transAxes)
        else:
            draw(axes)
        buffer = io.StringIO()
        no_stamp = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(buffer, format="svg", metadata=no_stamp, transparent=True)
    return Figure(title, _inline(buffer.getvalue(), title), legend)


def _inline(svg: str, title: str) -> str:
    """Make matplotlib's document a part of a page: no prologue, size, global style, font or fixed colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<[^>]+>", lambda match: _inline_tag(match.group()), svg)  # tags only, never a label
    return svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{escape(title)}" ', 1)


def _inline_tag(tag: str) -> str:
    tag = re.sub(r'font-family: [^;"]*;? ?', "", tag)
    tag = re.sub(r'font: ([0-9.]+px) [^;"]*', r"font-size: \1", tag)
    return re.sub("|".join(_VARIABLES), lambda match: f"var({_VARIABLES[match.group()]})", tag)


def plain_ticks(axis: Any, *, integers: bool = False) -> None:
    """Put few, round, plainly written numbers on an axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if axis.get_scale() == "linear":
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=integers))
    else:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_formatter(NullFormatter())


def _tick(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"
