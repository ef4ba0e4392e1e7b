"""KSA (arXiv 2604.24432): `python -m feedworks.ksa.bench cache | decode | learn | serve`.

Rows are JSON objects, one a line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
import torch

from feedworks.ksa.cache_bench import LENGTHS, STEP_LENGTHS, cache_rows, step_rows
from feedworks.ksa.learn_bench import learn
from feedworks.ksa.serve_bench import serve

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_dtype = click.option(
    "--dtype", type=click.Choice(list(_DTYPES)), show_default=True, help="of keys and values"
)


@click.group()
def main() -> None:
    """Measure the cache, a decoding step, what summaries teach a model, and the service."""


@main.command()
@click.option("--length", "lengths", type=int, multiple=True, default=LENGTHS, show_default=True)
@_dtype
def cache(lengths: Sequence[int], dtype: str | None) -> None:
    """Bytes of one sequence's cache against the formula, in the shape of the published 4B model."""
    for row in cache_rows(lengths, _DTYPES[dtype or "bfloat16"]):
        print(json.dumps(row), flush=True)


@main.command()
@click.option("--length", "lengths", type=int, multiple=True, default=STEP_LENGTHS, show_default=True)
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8), show_default=True)
@click.option("--repeats", type=int, default=10, show_default=True)
@_dtype
def decode(lengths: Sequence[int], batches: Sequence[int], repeats: int, dtype: str | None) -> None:
    """Time of a decoding step by length, against full attention here and in transformers."""
    for row in step_rows(lengths, batches, dtype=_DTYPES[dtype or "float32"], repeats=repeats):
        print(json.dumps(row), flush=True)


main.add_command(learn)
main.add_command(serve)

if __name__ == "__main__":
    main()
