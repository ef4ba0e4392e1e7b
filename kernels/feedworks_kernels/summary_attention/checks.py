"""What summary_attention accepts: one ValueError that names the argument, what it is, and what was expected.

Shape letters: B batch, H query heads, G key and value heads, T text rows, S summary rows, D head width, C
chunks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, bfloat16, float16, float32, float64
from torch.autograd import forward_ad

from feedworks_kernels.summary_attention.pattern import Pattern, Rows

_LARGEST = 2**31 - 1


def check_sizes(chunk: int, window: int | None, summaries: int, scale: float | None = None) -> None:
    """Refuse sizes out of range.

    Raises:
        ValueError: as `summary_attention`.
    """
    smallest = {"chunk": (chunk, 1), "summaries": (summaries, 1), "window": (window, 0)}
    for name, (value, least) in smallest.items():
        if value is None and name == "window":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST:
            also = " or None" if name == "window" else ""
            raise ValueError(f"{name}: expected a whole number from {least} to 2^31 - 1{also}, got {value!r}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, got {scale!r}")


def check_derivatives(text: Rows, summary: Rows) -> None:
    """Refuse forward-mode derivatives: torch drops them at an operator without a word.

    Raises:
        ValueError: as `summary_attention`.
    """
    if forward_ad._current_level < 0:
        return
    for tensor in (*text, *summary):
        if forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            raise ValueError("summary_attention has no forward-mode derivative (jvp): use backward()")


def check_rows(text: Rows, summary: Rows, pattern: Pattern) -> None:
    """Refuse tensors that do not fit.

    Raises:
        ValueError: as `summary_attention`.
    """
    query = text.query_BHTD
    if query.ndim != 4 or query.dtype not in (float32, float16, bfloat16, float64) or not query.shape[3]:
        raise ValueError(f"text.query: expected float (B, H, T, D) with D of 1 or more, got {_what(query)}")
    num_sequences, num_heads, num_text, width = query.shape
    key = text.key_BGTD
    num_groups = key.shape[1] if key.ndim == 4 else 0
    if not num_groups or num_heads % num_groups:
        raise ValueError(
            f"text.key: expected {query.dtype} (B, G, T, D) with G a divisor of the query's {num_heads} "
            f"heads, got {_what(key)}"
        )
    num_summaries = summary.query_BHTD.shape[2] if summary.query_BHTD.ndim == 4 else 0
    for name, rows, length in (("text", text, num_text), ("summary", summary, num_summaries)):
        heads = (("query", num_heads), ("key", num_groups), ("value", num_groups))
        for (part, number), tensor in zip(heads, rows, strict=True):
            _fits(f"{name}.{part}", tensor, (num_sequences, number, length, width), query)
    whole, begun = num_text // pattern.chunk, pattern.num_chunks(num_text)
    if num_summaries not in (pattern.summaries * whole, pattern.summaries * begun):
        either = f"{pattern.summaries * begun}" + (
            f", or {pattern.summaries * whole} without the unfinished chunk," if begun > whole else ""
        )
        raise ValueError(
            f"summary: expected {either} rows ({pattern.summaries} for each chunk of {pattern.chunk} "
            f"of {num_text} text rows), got {num_summaries}"
        )
    if pattern.first_chunk_BC is not None:
        _check_documents(pattern.first_chunk_BC, (num_sequences, begun), query)


def _check_documents(first_chunk_BC: Tensor, shape: tuple[int, int], query: Tensor) -> None:
    if tuple(first_chunk_BC.shape) != shape or first_chunk_BC.dtype != torch.int32:
        raise ValueError(f"first_chunk: expected int32 (B, C) = {shape}, got {_what(first_chunk_BC)}")
    _same_device("first_chunk", first_chunk_BC, query)
    if not first_chunk_BC.numel() or query.is_meta:
        return
    chunk_C = torch.arange(shape[1], dtype=torch.int32, device=query.device)
    # A document's first chunk is its own first, and documents stand one after another.
    own_BC = first_chunk_BC.gather(1, first_chunk_BC.clamp(0, shape[1] - 1).long())
    bad_BC = (first_chunk_BC < 0) | (first_chunk_BC > chunk_C) | (own_BC != first_chunk_BC)
    bad_BC[:, 1:] |= first_chunk_BC[:, 1:] < first_chunk_BC[:, :-1]
    if query.is_cuda:  # Looking would cost a wait: the device stops instead.
        torch._assert_async(~bad_BC.any(), "first_chunk: not the first chunk of each chunk's document")
    elif bad_BC.any():
        row, chunk = bad_BC.nonzero()[0].tolist()
        raise ValueError(
            f"first_chunk[{row}, {chunk}] = {int(first_chunk_BC[row, chunk])}: expected the first chunk of "
            "the document of that chunk; feedworks_kernels.first_chunks makes this table"
        )


def _fits(name: str, tensor: Tensor, shape: tuple[int, ...], query: Tensor) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != query.dtype:
        raise ValueError(f"{name}: expected {query.dtype} {shape}, got {_what(tensor)}")
    _same_device(name, tensor, query)


def _same_device(name: str, tensor: Tensor, query: Tensor) -> None:
    if tensor.device != query.device:
        raise ValueError(f"{name} lies on {tensor.device} and text.query on {query.device}: move one of them")


def _what(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
