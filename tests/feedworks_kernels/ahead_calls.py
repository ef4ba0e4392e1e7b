"""Calls for test_ahead.py: a few small kernels of every kind. `AHEAD_CODES` changes a shape."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from feedworks_kernels.ahead import Call
from feedworks_kernels.beam_step.kernel import beam_step
from feedworks_kernels.summary_decode.kernel import write
from feedworks_kernels.user_item_linear.kernel import user_item_linear


def calls(*, training: bool) -> Iterator[Call]:
    codes = int(os.environ.get("AHEAD_CODES", "32"))
    yield Call("three launches", lambda: search(codes))
    yield Call("integers that are multiples of 16", cache)
    yield Call("tuned", lambda: layer(40))
    if training:
        yield Call("tuned, few rows", lambda: layer(8))


def search(codes: int) -> None:
    beam_step(
        torch.empty(2, 4, codes),
        torch.empty(2, 4),
        torch.empty(2, 4, dtype=torch.int64),
        torch.empty(9, dtype=torch.int32),
        torch.empty(100, dtype=torch.int32),
        4,
        "children",
        None,
    )


def cache() -> None:
    whole, new = (torch.empty(2, 2, 33, 16), torch.empty(2, 2, 33, 16)), torch.empty(3, 2, 1, 16)
    write(*whole, new, new, torch.empty(3, dtype=torch.int64), torch.empty(3, 1, dtype=torch.int64))


def layer(num_rows: int) -> None:
    user_item_linear(torch.empty(1, 32), torch.empty(num_rows, 32), torch.empty(32, 32), None, "relu")
