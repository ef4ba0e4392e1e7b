"""The metrics of a run as tables for the terminal; each paper says which of its metrics they show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feedworks.errors import DataError
from feedworks.papers import PAPERS, Shown

GAIN = "_gain"  # ends the name of a row that compares two others: shown last, in per cent
TEST = "test"  # the group whose table needs no name


def summary(folder: Path) -> str:
    """Return the metrics of a finished run as tables, and where its report and model lie.

    Raises:
        DataError: the folder holds no finished run, or its metrics are not those of a run.
    """
    from feedworks.results import BENCH, REJECTED
    from feedworks.storage import read_json

    path = folder / "metrics.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no finished run (no metrics.json); make one with `feedworks run`")
    metrics = read_json(path)
    try:
        if (folder / BENCH).is_file():
            metrics = {**metrics, **read_json(folder / BENCH)["metrics"]}
        tables = [table for shown in _all_shown() if (table := _table(metrics, shown))]
        if not tables:
            raise ValueError("no metric to show")
    except (TypeError, ValueError, KeyError, AttributeError):
        raise DataError(f"{path} holds no metrics of a run; make it again with `feedworks run`") from None
    files = (("report", "report.html"), ("model", "model"), ("kept back by the gate since", REJECTED))
    found = [f"{kind}: {folder / name}" for kind, name in files if (folder / name).exists()]
    return "\n".join(["\n\n".join("\n".join(table) for table in tables), *found])


def _all_shown() -> list[Shown]:
    """The tables of all papers: a folder of results does not say which paper made it."""
    merged: dict[str, Shown] = {}
    for shown in (each for paper in PAPERS.values() for each in paper.shown):
        earlier = merged.get(shown.group, shown._replace(metrics=()))
        metrics = dict.fromkeys((*earlier.metrics, *shown.metrics))
        merged[shown.group] = earlier._replace(metrics=tuple(metrics))
    return list(merged.values())


def _table(metrics: Mapping[str, Any], shown: Shown) -> list[str]:
    rows: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        group, _, rest = key.partition("/")
        row, _, name = rest.partition("/")
        if group == shown.group and "/" not in name and _family(name) in shown.metrics:
            rows.setdefault(row, {})[name] = value

    def order(name: str) -> tuple[int, int]:
        return shown.metrics.index(_family(name)), int(name.partition("@")[2] or 0)

    columns = sorted({name for values in rows.values() for name in values}, key=order)
    if not columns:
        return []
    left = max(16, *(len(row) + 2 for row in rows))
    wide = {name: max(11, len(name) + 2) for name in columns}
    title = "" if shown.group == TEST else shown.group
    lines = [f"{title:<{left}}" + "".join(f"{name:>{wide[name]}}" for name in columns)]
    for row in _in_order(rows, columns[0], shown.best):
        cells = (_cell(rows[row].get(name), row.endswith(GAIN)).rjust(wide[name]) for name in columns)
        lines.append(f"{row:<{left}}" + "".join(cells))
    return lines


def _family(name: str) -> str:
    """`recall@` for `recall@5`, other names as they are."""
    head, separator, _ = name.partition("@")
    return head + separator


def _in_order(rows: Mapping[str, Mapping[str, float]], column: str, best: str) -> list[str]:
    sign = {"max": -1, "min": 1, "": 0}[best]
    worst = float("inf") if sign else 0.0
    return sorted(rows, key=lambda row: (row.endswith(GAIN), sign * rows[row].get(column, sign * worst), row))


def _cell(value: float | None, is_gain: bool) -> str:
    if value is None:
        return ""
    if is_gain:
        return f"{value:+.1%}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
