"""Charts for reports: inline SVG, one figure for light and dark, narrow enough to be read on a phone.

A wide screen puts several side by side. Labels may hold any text.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from feedworks.metrics.ranking import Interval
from feedworks.reports.svg import GRID, INK, MUTED, NUM_COLOURS, Figure, colour, draw_figure, plain_ticks
from feedworks.reports.text import format_number

MAX_POINTS = 400  # per line: more than a screen can show, few enough for many figures in one file


def curves(
    title: str,
    history: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    *,
    x: str = "epoch",
    log_y: bool = False,
) -> Figure:
    """Draw columns of a training history, one line per key.

    Args:
        title: heading of the figure.
        history: rows as `training.fit` returns them; a row may lack a key, e.g. where it was not evaluated.
        keys: the columns to draw, e.g. `["train/loss"]` or `["valid/ndcg@10"]`.
        x: the column of the horizontal axis.
        log_y: logarithmic vertical axis.
    """
    series = {
        key: [(float(row[x]), float(row[key])) for row in history if row.get(key) is not None] for key in keys
    }
    return lines(title, series, x_label=x, log_y=log_y)


def lines(
    title: str,
    series: Mapping[str, Iterable[tuple[float, float]]],
    *,
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
) -> Figure:
    """Draw one line per series of (x, y) points.

    Points that are not finite, or not positive on a logarithmic axis, are left out. A line of more than
    `MAX_POINTS` points is thinned evenly and keeps its last point.
    """
    kept = {name: _drawable(points, log_x, log_y) for name, points in series.items()}

    def draw(axes: Any) -> None:
        for index, points in enumerate(kept.values()):
            xs, ys = [x for x, _ in points], [y for _, y in points]
            axes.plot(xs, ys, color=colour(index), marker="o" if len(points) <= 20 else None, markersize=4)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        _label(axes, x_label, y_label)
        plain_ticks(axes.xaxis, integers=_whole(x for points in kept.values() for x, _ in points))
        plain_ticks(axes.yaxis)

    legend = tuple(series) if len(series) > 1 else ()
    return draw_figure(title, draw if any(kept.values()) else None, legend)


def bars(
    title: str, values: Mapping[str, float | Interval], *, x_label: str = "", ours: Collection[str] = ()
) -> Figure:
    """Draw one horizontal bar per label, in the order given, with its number and, if any, its interval.

    Labels in `ours` keep the first colour and the others turn grey.
    """
    colours = [colour(0 if not ours or label in ours else NUM_COLOURS - 1) for label in values]

    def draw(axes: Any) -> None:
        intervals = [_as_interval(value) for value in values.values()]
        at = np.arange(len(intervals))
        means = [interval.mean for interval in intervals]
        numbers = [value.mean if isinstance(value, Interval) else value for value in values.values()]
        axes.barh(at, means, height=0.62, color=colours)
        _whiskers(axes.errorbar, means, at, intervals, horizontal=True)
        reach = max([interval.high for interval in intervals] + [0.0])
        for position, interval, number in zip(at, intervals, numbers, strict=True):
            end = max(interval.high, 0.0) + 0.02 * reach
            axes.text(end, position, format_number(number), va="center", fontsize=9.5)
        axes.set_yticks(at, [_short(label) for label in values])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.grid(visible=False, axis="y")
        _label(axes, x_label, "")
        plain_ticks(axes.xaxis)

    return draw_figure(title, draw if values else None, height_in=max(1.4, 0.32 * len(values) + 0.6))


def grouped_bars(
    title: str, groups: Mapping[str, Mapping[str, float | Interval]], *, y_label: str = ""
) -> Figure:
    """Draw groups (e.g. slices of the users) of bars (e.g. methods); a series may lack in a group."""
    names = tuple(dict.fromkeys(name for group in groups.values() for name in group))

    def draw(axes: Any) -> None:
        width = 0.82 / max(1, len(names))
        for index, name in enumerate(names):
            offset = (index - (len(names) - 1) / 2) * width
            here = [(at + offset, group[name]) for at, group in enumerate(groups.values()) if name in group]
            positions = [position for position, _ in here]
            intervals = [_as_interval(value) for _, value in here]
            means = [interval.mean for interval in intervals]
            axes.bar(positions, means, width=0.9 * width, color=colour(index))
            _whiskers(axes.errorbar, positions, means, intervals, horizontal=False)
        width_chars = max(6, 44 // len(groups))
        axes.set_xticks(range(len(groups)), [textwrap.fill(_short(name), width_chars) for name in groups])
        axes.tick_params(axis="x", length=0, labelcolor=INK)
        axes.grid(visible=False, axis="x")
        _label(axes, "", y_label)
        plain_ticks(axes.yaxis)

    return draw_figure(title, draw if names else None, names if len(names) > 1 else ())


def heat_map(
    title: str,
    cells: Sequence[Sequence[float | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    x_label: str = "",
    y_label: str = "",
) -> Figure:
    """Draw a table of shares from 0 to 1 as boxes that are the fuller the larger, with the share in per cent.

    Args:
        title: heading of the figure.
        cells: one sequence for each row, from the top; None and what is not finite stays empty.
        rows: names on the left.
        columns: names below.
        x_label: of the columns.
        y_label: of the rows.
    """
    known = [
        (x, y, float(value))
        for y, row in enumerate(cells)
        for x, value in enumerate(row)
        if value is not None and math.isfinite(value)
    ]

    def draw(axes: Any) -> None:
        for x, y, value in known:
            strength = min(1.0, max(0.0, value))
            place = {"bottom": y - 0.46, "height": 0.92, "width": 0.92}
            axes.bar(x, **place, color=GRID, alpha=0.35)
            axes.bar(x, **place, color=colour(0), alpha=0.06 + 0.6 * strength)
            axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=INK, fontsize=9.5)
        axes.set_xticks(range(len(columns)), [_short(name, 10) for name in columns])
        axes.set_yticks(range(len(rows)), [_short(name, 12) for name in rows])
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(length=0, labelcolor=INK)
        axes.grid(visible=False)
        _label(axes, x_label, y_label)

    return draw_figure(title, draw if known else None, height_in=max(1.6, 0.34 * len(rows) + 0.9))


def histogram(
    title: str,
    values: npt.ArrayLike,
    *,
    num_bins: int = 30,
    x_label: str = "",
    y_label: str = "count",
    log_y: bool = False,
) -> Figure:
    """Draw the distribution of numbers; a short range of integers gets one bar per integer."""
    numbers = np.asarray(values).ravel()
    numbers = numbers[np.isfinite(numbers)] if numbers.size else np.zeros(0)

    def draw(axes: Any) -> None:
        whole = np.ptp(numbers) < num_bins and _whole(numbers.tolist())
        edges = np.arange(numbers.min(), numbers.max() + 2) - 0.5 if whole else num_bins
        count, edges = np.histogram(numbers, bins=edges)
        width = np.diff(edges)
        axes.bar(edges[:-1] + width / 2, count, width=0.92 * width, color=colour(0), log=log_y)
        plain_ticks(axes.xaxis, integers=bool(whole))
        axes.grid(visible=False, axis="x")
        _label(axes, x_label, y_label)
        plain_ticks(axes.yaxis)

    return draw_figure(title, draw if numbers.size else None)


def _drawable(points: Iterable[tuple[float, float]], log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    def fits(value: float, log: bool) -> bool:
        return math.isfinite(value) and (value > 0 or not log)

    kept = [(x, y) for x, y in points if fits(x, log_x) and fits(y, log_y)]
    step = math.ceil(len(kept) / MAX_POINTS)
    return kept if step <= 1 else [*kept[:-1:step], kept[-1]]


def _as_interval(value: float | Interval) -> Interval:
    """Return what to draw for a value: nothing where it is not finite."""
    interval = value if isinstance(value, Interval) else Interval(value, value, value)
    return interval if all(map(math.isfinite, interval)) else Interval(0.0, 0.0, 0.0)


def _short(label: str, length: int = 28) -> str:
    """Cut a label that would squeeze the chart; the tables of a report hold the whole of it."""
    return label if len(label) <= length else label[: length - 1] + "…"


def _whole(numbers: Iterable[float]) -> bool:
    return all(float(number).is_integer() for number in numbers)


def _whiskers(
    errorbar: Callable[..., Any], xs: Any, ys: Any, intervals: Sequence[Interval], *, horizontal: bool
) -> None:
    if all(interval.low == interval.high for interval in intervals):
        return
    below = [max(0.0, interval.mean - interval.low) for interval in intervals]
    above = [max(0.0, interval.high - interval.mean) for interval in intervals]
    error = {"xerr" if horizontal else "yerr": [below, above]}
    errorbar(xs, ys, **error, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)


def _label(axes: Any, x_label: str, y_label: str) -> None:
    axes.set_xlabel(_short(x_label, 48))
    if y_label:  # above the axis and upright: a sideways label is hard to read and takes width
        axes.text(0.0, 1.03, _short(y_label, 48), transform=axes.transAxes, color=MUTED, fontsize=10)
