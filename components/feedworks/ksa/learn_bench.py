"""KSA (arXiv 2604.24432): `python -m feedworks.ksa.bench learn`, see `learning.py` and `learn_recall.py`.

One JSON object per line as each model is done, the same lines in `<out>/<what>.jsonl`, a table at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch

from feedworks.errors import FeedworksError
from feedworks.ksa.arms import ARMS, Arm
from feedworks.ksa.learn_recall import recall, recall_plan
from feedworks.ksa.learning import Row, books, books_plan, conversion
from feedworks.metrics.latency import print_rows

# Full attention first: the others tell their loss as a share of its.
_ORDER = sorted(ARMS, key=lambda arm: arm != "full")


@click.command()
@click.option("--what", type=click.Choice(["recall", "books", "conversion"]), required=True)
@click.option("--data", help="folder of books, or any text data folder; not for recall")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="state, models and rows")
@click.option("--arm", "arms", type=click.Choice(_ORDER), multiple=True, help="[default: all]")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--steps", type=int, default=None, help="optimiser steps  [default: the plan's]")
@click.option("--full-every", type=int, default=None, help="every so many layers one reads all; 0: none")
@click.option("--threads", type=int, default=None, help="threads of torch  [default: its choice]")
def learn(
    what: str,
    data: str | None,
    out: Path,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    steps: int | None,
    full_every: int | None,
    threads: int | None,
) -> None:
    """Train small models to show what summaries carry."""
    if threads is not None:
        torch.set_num_threads(threads)
    if what != "recall" and data is None:
        raise click.UsageError(f"--what {what} needs --data, a folder of books")
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    try:
        for row in _rows(what, data or "", out, list(arms) or list(_ORDER), seeds, steps, full_every):
            print_rows([row])
            rows.append(row)
            text = "".join(json.dumps(each) + "\n" for each in rows)
            (out / f"{what}.jsonl").write_text(text, encoding="utf-8")
    except FeedworksError as error:
        raise click.ClickException(str(error)) from None
    click.echo(table(rows), err=True)


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; a field that a row lacks is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names)]
    lines += [[_shown(row.get(name, "")) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rows(
    what: str,
    data: str,
    out: Path,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    steps: int | None,
    full_every: int | None,
) -> Iterator[Row]:
    if what == "recall":
        return recall(out, recall_plan(steps) if steps else recall_plan(), arms=arms, seeds=seeds)
    plan = books_plan(steps) if steps else books_plan()
    if full_every is not None:
        plan = plan._replace(model=replace(plan.model, full_every=full_every))
    if what == "books":
        return books(data, out, plan, arms=arms, seeds=seeds)
    return conversion(data, out, plan, seeds=seeds)
