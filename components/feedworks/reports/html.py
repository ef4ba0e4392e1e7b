"""One self-contained HTML file per run: no script, no network, readable on a phone, light and dark.

It is opened from disk, and the same bytes are shown as an artifact in a sandboxed frame of the pipeline UI.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from feedworks import __version__
from feedworks.metrics.ranking import Interval
from feedworks.reports.svg import NUM_COLOURS, Figure
from feedworks.reports.tables import Cell, best_cells, render_cell, render_table
from feedworks.reports.text import metric_title
from feedworks.storage import write_bytes


class Published(NamedTuple):
    """Numbers that others report for the same protocol, shown for comparison and never set in bold."""

    method: str
    values: Mapping[str, float]
    source: str


class Report:
    """Collects sections in the order in which they are added; `write` puts them into one file."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._parts: list[str] = []
        self._num_figures = 0

    def add_highlights(self, values: Mapping[str, tuple[Cell, str]]) -> None:
        """Add the few numbers to see first: label -> (value, one line of context)."""
        boxes = []
        for label, (value, context) in values.items():
            note = f"<dd><small>{escape(context)}</small></dd>" if context else ""
            box = f"<dt>{escape(label)}</dt><dd class=value>{render_cell(value)}</dd>{note}"
            boxes.append(f"<div>{box}</div>")
        self._parts.append(f"<dl class=highlights>{''.join(boxes)}</dl>")

    def add_text(self, title: str, text: str) -> None:
        """Add paragraphs; a blank line in `text` parts two of them."""
        paragraphs = [escape(part) for part in re.split(r"\n\s*\n", text.strip())]
        self._add(title, "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs))

    def add_table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        note: str = "",
        *,
        best: Mapping[str, str] | None = None,
        folded: bool = False,
    ) -> None:
        """Add a table whose first column names the rows.

        Args:
            title: heading.
            columns: one name per cell of a row.
            rows: cells; None shows as a dash, an `Interval` with its bounds below the mean.
            note: a line below the table.
            best: column -> "max" or "min": the best cells of the column are set in bold.
            folded: show the title only until the reader opens it (long tables, settings).

        Raises:
            ValueError: a row has another length than `columns`, or `best` names an unknown column or order.
        """
        table = render_table(columns, rows, best_cells(columns, rows, best or {}), [""] * len(rows))
        self._add(title, table + _note(note), folded=folded)

    def add_metrics(
        self,
        title: str,
        methods: Mapping[str, Mapping[str, Interval | float]],
        *,
        published: Sequence[Published] = (),
        note: str = "",
        ours: Collection[str] = (),
        lower_is_better: Collection[str] = (),
        over: str = "users",
    ) -> None:
        """Add methods against metrics, the best of this run in bold, with bootstrap intervals.

        Args:
            title: heading.
            methods: method -> metric (`recall@5`) -> value over users.
            published: rows from papers, set apart below with their source.
            note: a line below the table, before the explanation of bold and intervals.
            ours: methods to tint.
            lower_is_better: metrics where the smallest value is best.
            over: what the bootstrap drew.
        """
        tables = [*methods.values(), *(row.values for row in published)]
        keys = list(dict.fromkeys(key for values in tables for key in values))
        rows: list[list[Cell]] = [
            [name, *(values.get(key) for key in keys)] for name, values in methods.items()
        ]
        order = {key: "min" if key in lower_is_better else "max" for key in keys}
        bold = best_cells(["Method", *keys], rows, order)
        classes = ["ours" if name in ours else "" for name in methods]
        for index, row in enumerate(published):
            rows.append([f"{row.method}\n{row.source}", *(row.values.get(key) for key in keys)])
            classes.append("published" if index else "published first-published")
        table = render_table(["Method", *map(metric_title, keys)], rows, bold, classes)
        hints = [note, "Bold: best of this run." if bold else ""]
        if any(isinstance(cell, Interval) for row in rows for cell in row):
            hints.append(f"Below each mean: 95 % bootstrap interval over {over}.")
        if published:
            hints.append("Grey: as published, not run here.")
        self._add(title, table + _note(" ".join(filter(None, hints))))

    def add_figure(self, title: str, *figures: Figure, note: str = "") -> None:
        """Add figures of one subject, side by side where there is room.

        The SVG of a `Figure` goes into the page as it is: take it from `feedworks.reports.figures`, which
        escapes its labels.
        """
        self._add(title, f"<div class=figures>{''.join(map(self._figure, figures))}</div>" + _note(note))

    def add_drawing(self, title: str, svg: str, legend: Mapping[str, str], note: str = "") -> None:
        """Add a picture in its own size, which scrolls where it is wider than the page.

        Args:
            title: heading.
            svg: from `feedworks.reports.graph`, which escapes its labels.
            legend: label -> CSS colour.
            note: a line below.
        """
        chips = [f'<li style="--colour: {colour}">{escape(name)}</li>' for name, colour in legend.items()]
        body = f"<ul class=legend>{''.join(chips)}</ul><div class=scroll tabindex=0>{svg}</div>"
        self._add(title, body + _note(note))

    def html(self) -> str:
        """Return the document; equal content gives equal text, for it holds no date and no random id."""
        css = resources.files("feedworks.reports").joinpath("report.css").read_text(encoding="utf-8")
        subtitle = f"<p class=subtitle>{escape(self._subtitle)}</p>" if self._subtitle else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self._title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
            f"<header><h1>{escape(self._title)}</h1>{subtitle}</header>\n"
            + "\n".join(self._parts)
            + f"\n<footer>Written by feedworks {escape(__version__)}.</footer>\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> None:
        """Write the document by one rename, so that an earlier report stays whole until then.

        Raises:
            OSError: the file cannot be written.
        """
        write_bytes(path, self.html().encode("utf-8"))

    def _add(self, title: str, body: str, *, folded: bool = False) -> None:
        if folded:
            content = f"<details><summary>{escape(title)}</summary>{body}</details>"
        else:
            content = f"<h2>{escape(title)}</h2>{body}"
        self._parts.append(f"<section>{content}</section>")

    def _figure(self, figure: Figure) -> str:
        self._num_figures += 1
        chips = [
            f'<li style="--colour: var(--series-{index % NUM_COLOURS + 1})">{escape(name)}</li>'
            for index, name in enumerate(figure.legend)
        ]
        legend = f"<ul class=legend>{''.join(chips)}</ul>" if chips else ""
        svg = _own_ids(figure.svg, f"figure-{self._num_figures}-")
        return f"<figure><figcaption><h3>{escape(figure.title)}</h3></figcaption>{legend}{svg}</figure>"


def _own_ids(svg: str, prefix: str) -> str:
    """Make the ids of a figure unique in the page, where several figures of one kind would share them."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'(href="#|url\(#)', rf"\1{prefix}", svg)


def _note(text: str) -> str:
    return f"<p class=note>{escape(text)}</p>" if text else ""
