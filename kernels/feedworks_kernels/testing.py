"""What the tests and benches of all operators share: inputs, tolerances, poisoned memory, a forced form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from feedworks_kernels._dispatch import VARIABLE

# Relative and absolute, against an fp64 result.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 2e-2,
}


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare with what an input of type `dtype` allows.

    Raises:
        AssertionError: they differ; the message says where and by how much.
    """
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        got, expected, rtol=tolerance, atol=tolerance, equal_nan=True, check_dtype=False
    )


@contextmanager
def forced(form: str) -> Iterator[None]:
    """Run one form (`reference`, `eager`, `triton`) of every operator inside the block."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = form
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill new uninitialised tensors with NaN (the largest integer), so that a place left unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def random_level(generator: torch.Generator, num_nodes: int, num_codes: int) -> tuple[Tensor, Tensor]:
    """Draw one trie level: each node has any number of children. Returns child_start, child_code (int32)."""
    counts = torch.randint(0, num_codes + 1, (num_nodes,), generator=generator)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    codes = [torch.randperm(num_codes, generator=generator)[:n].sort().values for n in counts.tolist()]
    return start.int(), torch.cat(codes).int()
