"""KSA (arXiv 2604.24432): `python -m feedworks.ksa.bench cache | decode | learn | serve`.

Rows are JSON objects, one a line, as soon as they are there; a Markdown table of them ends stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
import torch

from feedworks.ksa.cache_bench import LENGTHS, STEP_LENGTHS, cache_rows, step_rows
from feedworks.ksa.learn_bench import learn
from feedworks.ksa.serve_bench import serve
from feedworks.metrics.latency import markdown_table, print_rows

_COUNT = click.IntRange(min=1)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _dtype(default: str) -> Callable[[Any], Any]:
    known = click.Choice(list(_DTYPES))
    return click.option("--dtype", type=known, default=default, show_default=True, help="of keys and values")


def _lengths(default: Sequence[int]) -> Callable[[Any], Any]:
    told = "tokens; repeatable"
    return click.option(
        "--length", "lengths", type=_COUNT, multiple=True, default=default, show_default=True, help=told
    )


@click.group()
def main() -> None:
    """Measure the cache, a decoding step, what summaries teach a model, and the service."""


@main.command()
@_lengths(LENGTHS)
@_dtype("bfloat16")
def cache(lengths: Sequence[int], dtype: str) -> None:
    """Bytes of one sequence's cache against the formula, in the shape of the published 4B model."""
    _show(cache_rows(lengths, _DTYPES[dtype]))


@main.command()
@_lengths(STEP_LENGTHS)
@click.option(
    "--batch",
    "batches",
    type=_COUNT,
    multiple=True,
    default=(1, 8),
    show_default=True,
    help="sequences of a step; repeatable",
)
@click.option("--repeats", type=_COUNT, default=10, show_default=True, help="timed rounds of 8 steps")
@click.option("--threads", type=_COUNT, default=None, help="threads of torch  [default: its choice]")
@_dtype("float32")
def decode(
    lengths: Sequence[int], batches: Sequence[int], repeats: int, threads: int | None, dtype: str
) -> None:
    """Time of a decoding step by length, against full attention here and in transformers.

    A full cache takes 8 KB for each token of each sequence in float32, and there are two of them, ours and
    transformers': 4 GB for 8 sequences of 32,768 tokens or for 32 of 8,192.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    _show(step_rows(lengths, batches, dtype=_DTYPES[dtype], repeats=repeats))


def _show(rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as they come, and all of them as a table."""
    shown = []
    for row in rows:
        print_rows([row])
        shown.append(row)
    click.echo(markdown_table([{k: v for k, v in row.items() if k != "device"} for row in shown]), err=True)


main.add_command(learn)
main.add_command(serve)

if __name__ == "__main__":
    main()
