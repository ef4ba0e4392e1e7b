"""Tables of a report as HTML: one way to write a cell, the best of a column in bold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from feedworks.metrics.ranking import Interval
from feedworks.reports.text import format_interval, format_number

Cell = str | bool | int | float | Interval | None

_ORDERS = {"max": max, "min": min}


def render_table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], bold: set[tuple[int, int]], classes: Sequence[str]
) -> str:
    """Write a table whose first column names the rows.

    Args:
        columns: names.
        rows: one cell per column.
        bold: (row, column) of the cells to set in bold.
        classes: one CSS class, or nothing, per row.
    """
    numeric = [any(_is_number(row[at]) for row in rows) for at in range(len(columns))]
    head = "".join(
        f"<th scope=col{' class=number' if numeric[at] and at else ''}>{escape(name)}</th>"
        for at, name in enumerate(columns)
    )
    body = []
    for index, (row, name) in enumerate(zip(rows, classes, strict=True)):
        cells = [f"<th scope=row>{render_cell(row[0])}</th>"]
        for at, cell in enumerate(row[1:], start=1):
            content = render_cell(cell, bold=(index, at) in bold)
            cells.append(f"<td{' class=number' if numeric[at] else ''}>{content}</td>")
        body.append(f'<tr class="{name}">{"".join(cells)}</tr>' if name else f"<tr>{''.join(cells)}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class=scroll tabindex=0 role=region aria-label="{escape(columns[0])} table">{table}</div>'


def render_cell(cell: Cell, *, bold: bool = False) -> str:
    """Write a cell: None is a dash, an interval its mean above its bounds, text after a line break small."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Interval):
        mean = format_number(cell.mean)
        return f"{f'<strong>{mean}</strong>' if bold else mean}<small>{format_interval(cell)}</small>"
    if isinstance(cell, str):
        first, _, rest = cell.partition("\n")
        return escape(first) + (f"<small>{escape(rest)}</small>" if rest else "")
    text = format_number(cell)
    return f"<strong>{text}</strong>" if bold else text


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float | Interval) and not isinstance(cell, bool)


def best_cells(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], best: Mapping[str, str]
) -> set[tuple[int, int]]:
    """Return (row, column) of every cell that reads the same as the best of its column."""
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"every row needs {len(columns)} cells, one per column: {', '.join(columns)}")
    if unknown := {
        name: order for name, order in best.items() if name not in columns or order not in _ORDERS
    }:
        raise ValueError(f"best takes known columns and 'max' or 'min', got {unknown}")
    found: set[tuple[int, int]] = set()
    for name, order in best.items():
        at = list(columns).index(name)
        values = {
            index: cell.mean if isinstance(cell, Interval) else float(cell)
            for index, row in enumerate(rows)
            if isinstance(cell := row[at], int | float | Interval) and not isinstance(cell, bool)
        }
        if len(values) > 1:
            top = format_number(_ORDERS[order](values.values()))
            found |= {(index, at) for index, value in values.items() if format_number(value) == top}
    return found
