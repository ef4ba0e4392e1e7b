"""Cutting a batch into the rows of one process and into parts; moving it to a device.

A batch is a NamedTuple. Its first tensor gives the number of rows; every tensor with as many rows is cut,
anything else (a shared table of negatives, a number, None) goes whole to everyone.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from feedworks.errors import DataError

BatchT = TypeVar("BatchT", bound=tuple[Any, ...])


class Part(NamedTuple):
    """Some rows of a batch, from row `begin`; `weight` is their number, 0 for a stand-in of one row."""

    batch: Any
    weight: int
    begin: int


def num_rows(batch: tuple[Any, ...]) -> int:
    """Return the rows of a batch.

    Raises:
        DataError: no field is a tensor with at least one row.
    """
    for value in batch:
        if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] > 0:
            return value.shape[0]
    raise DataError(f"a training batch of type {type(batch).__name__} has no tensor with rows")


def split(batch: tuple[Any, ...], *, rank: int, world: int, num_parts: int) -> list[Part]:
    """Return the rows of one process, in at most `num_parts` parts of almost equal size.

    Over all processes each row comes once, and all have as many parts: with FSDP they exchange weights in
    every forward pass. Where there is no row left for a part it is the first row with weight 0.
    """
    rows = num_rows(batch)
    begin, end = rows * rank // world, rows * (rank + 1) // world
    num_parts = min(num_parts, -(-rows // world))
    cuts = [begin + (end - begin) * part // num_parts for part in range(num_parts + 1)]
    return [
        Part(_slice(batch, rows, low, high), high - low, low)
        if low < high
        else Part(_slice(batch, rows, 0, 1), 0, 0)
        for low, high in itertools.pairwise(cuts)
    ]


def to_device(batch: BatchT, device: torch.device) -> BatchT:
    """Return the batch with its tensors on `device`; a copy from pinned memory does not block."""
    moved = (x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in batch)
    return type(batch)(*moved)


def _slice(batch: BatchT, rows: int, low: int, high: int) -> BatchT:
    cut = (x[low:high] if isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == rows else x for x in batch)
    return type(batch)(*cut)
