"""KSA (arXiv 2604.24432): `python -m feedworks.ksa.bench learn`, see `learning.py` and `learn_recall.py`.

One JSON object per line as each model is done, the same lines in `<out>/<what>.jsonl` beside those of other
attentions and seeds, a table at the end.
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
from feedworks.metrics.latency import markdown_table, print_rows
from feedworks.storage import write_bytes

# Full attention first: the others tell their loss as a share of its.
_FROM_0, _FROM_1 = click.IntRange(min=0), click.IntRange(min=1)
_ORDER = sorted(ARMS, key=lambda arm: arm != "full")


@click.command()
@click.option("--what", type=click.Choice(["recall", "books", "conversion"]), required=True)
@click.option("--data", help="folder of books, or any text data folder; not for recall")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="state, models and rows")
@click.option("--arm", "arms", type=click.Choice(_ORDER), multiple=True, help="[default: all]")
@click.option("--seed", "seeds", type=_FROM_0, multiple=True, default=(0,), show_default=True)
@click.option("--steps", type=_FROM_1, default=None, help="optimiser steps  [default: the plan's]")
@click.option(
    "--full-every", type=_FROM_0, help="every so many layers one reads all; 0: none; not for recall"
)
@click.option("--threads", type=_FROM_1, default=None, help="threads of torch  [default: its choice]")
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
    if what == "recall" and full_every is not None:
        raise click.UsageError("--full-every: a layer that reads all would solve recall for every attention")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{what}.jsonl"
    rows = {_name(row): row for row in _earlier(file)}
    try:
        for row in _rows(what, data or "", out, list(arms) or list(_ORDER), seeds, steps, full_every):
            print_rows([row])
            rows[_name(row)] = row
            write_bytes(file, "".join(json.dumps(each) + "\n" for each in rows.values()).encode())
    except FeedworksError as error:
        raise click.ClickException(str(error)) from None
    click.echo(markdown_table(list(rows.values())), err=True)


def _earlier(file: Path) -> list[Row]:
    if not file.is_file():
        return []
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise click.ClickException(f"{file} is damaged ({error}); move it away") from None


def _name(row: Row) -> tuple[str, int]:
    return str(row.get("arm")), int(row.get("seed", 0))


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
