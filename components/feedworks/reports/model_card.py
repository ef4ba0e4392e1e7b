"""The model card that lies in every packaged model folder (Mitchell et al., arXiv 1810.03993)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from feedworks.metrics.ranking import Interval
from feedworks.reports.text import format_interval, format_number, metric_title
from feedworks.storage import write_bytes


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a reader must know before using a model; empty parts are left out of the card."""

    name: str
    summary: str
    paper: str = ""
    licence: str = ""
    data: str = ""
    intended_use: str = ""
    limitations: Sequence[str] = ()
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Interval | float]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def render_model_card(card: ModelCard) -> str:
    """Return the card as Markdown with a YAML head that model hubs read."""
    head = {"license": card.licence, "library_name": "feedworks"}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value), "---", ""]
    lines += [f"# {_plain(card.name)}", "", _plain(card.summary), ""]
    for title, text in (("Paper", card.paper), ("Intended use", card.intended_use), ("Data", card.data)):
        if text:
            lines += [f"## {title}", "", _plain(text), ""]
    if card.metrics:
        lines += ["## Results", "", *_metric_table(card.metrics), ""]
    if card.limitations:
        lines += ["## Limits", "", *(f"- {_plain(item)}" for item in card.limitations), ""]
    if card.facts:
        rows = [[name, _number(value)] for name, value in card.facts.items()]
        lines += ["## Facts", "", *_table(["what", "value"], rows), ""]
    if card.files:
        rows = [[f"`{name}`", what] for name, what in card.files.items()]
        lines += ["## Files", "", *_table(["file", "content"], rows), ""]
    return "\n".join(lines)


def write_model_card(path: str | Path, card: ModelCard) -> None:
    """Write the card by one rename.

    Raises:
        OSError: the file cannot be written.
    """
    write_bytes(path, render_model_card(card).encode("utf-8"))


def _metric_table(methods: Mapping[str, Mapping[str, Interval | float]]) -> list[str]:
    keys = list(dict.fromkeys(key for values in methods.values() for key in values))
    rows = [[name, *(_metric(values.get(key)) for key in keys)] for name, values in methods.items()]
    note = "In brackets: 95 % bootstrap interval."
    return [*_table(["method", *map(metric_title, keys)], rows), "", note]


def _metric(value: Interval | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, Interval):
        return f"{format_number(value.mean)} ({format_interval(value)})"
    return format_number(value)


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else format_number(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def _plain(text: str) -> str:
    """Keep text in its line and as text: no tag, no line break."""
    return " ".join(text.replace("<", "&lt;").split())
