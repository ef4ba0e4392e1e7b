"""What the tests and benches of all operators share: inputs, tolerances, poisoned memory, a forced form."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from feedworks_kernels._dispatch import VARIABLE
from feedworks_kernels.summary_attention.pattern import Rows

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


def random_layer(
    generator: torch.Generator, sizes: tuple[int, int, int, int, int], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor | None]:
    """Draw the arguments of `user_item_linear`, numbers of about 1 in and out.

    Args:
        generator: random numbers.
        sizes: B rows, R requests (0: one user row and no request index), U, I, N.
        dtype: type of the floats.
    """
    num_rows, num_requests, user_width, item_width, num_outputs = sizes
    scale = max(1, user_width + item_width) ** -0.5

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    floats = {
        "user_RU": normal(num_requests or 1, user_width),
        "item_BI": normal(num_rows, item_width),
        "weight_user_NU": normal(num_outputs, user_width) * scale,
        "weight_item_NI": normal(num_outputs, item_width) * scale,
        "bias_N": normal(num_outputs),
    }
    request_B = torch.randint(0, num_requests or 1, (num_rows,), generator=generator)
    return {name: tensor.to(dtype) for name, tensor in floats.items()} | {
        "request_B": request_B.sort().values if num_requests else None
    }


def random_rows(
    generator: torch.Generator,
    sizes: tuple[int, int, int, int, int],
    *,
    chunk: int,
    summaries: int = 1,
    unfinished: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Rows, Rows]:
    """Draw the text and summary rows of `summary_attention`, standard normal.

    Args:
        generator: random numbers.
        sizes: B sequences, H query heads, G key and value heads, T text rows, D head width.
        chunk: text rows per chunk.
        summaries: summary rows per chunk.
        unfinished: a last chunk of less than `chunk` rows has summaries.
        dtype: type of all.
    """
    num_sequences, num_heads, num_groups, num_text, width = sizes
    num_chunks = -(-num_text // chunk) if unfinished else num_text // chunk

    def normal(heads: int, rows: int) -> Tensor:
        shape = (num_sequences, heads, rows, width)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def drawn(rows: int) -> Rows:
        return Rows(normal(num_heads, rows), normal(num_groups, rows), normal(num_groups, rows))

    return drawn(num_text), drawn(summaries * num_chunks)


def concatenated_linear(layer: Mapping[str, Tensor | None], activation: str) -> Tensor:
    """The layer that `user_item_linear` stands for: the user's row copied to each candidate, one product."""
    user_RU, item_BI, weight_user_NU, weight_item_NI = (
        layer[name] for name in ("user_RU", "item_BI", "weight_user_NU", "weight_item_NI")
    )
    assert user_RU is not None
    assert item_BI is not None
    assert weight_user_NU is not None
    assert weight_item_NI is not None
    request_B = layer["request_B"]
    user_BU = user_RU.expand(len(item_BI), -1) if request_B is None else user_RU[request_B]
    weight_NW = torch.cat([weight_user_NU, weight_item_NI], dim=1)
    mixed_BN = F.linear(torch.cat([user_BU, item_BI], dim=1), weight_NW, layer["bias_N"])
    if activation == "none":
        return mixed_BN
    functions = {"relu": torch.relu, "sigmoid": torch.sigmoid, "silu": F.silu, "gelu": F.gelu}
    return functions[activation](mixed_BN)
