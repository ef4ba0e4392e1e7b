"""Attention of a text that is cut into chunks: near chunks are read raw, far ones through their summaries.

Maths and measurements: README.md here. Shape letters: B batch, H query heads, G key and value heads, T text
rows, S summary rows, D head width, C chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels.summary_attention import registration
from feedworks_kernels.summary_attention.checks import check_derivatives, check_rows, check_sizes
from feedworks_kernels.summary_attention.pattern import Pattern, Rows

__all__ = ["Rows", "SummaryAttention", "first_chunks", "summary_attention"]


class SummaryAttention(NamedTuple):
    """Attention outputs of the text rows and of the summary rows."""

    text_BHTD: Tensor
    summary_BHSD: Tensor


def summary_attention(
    text: Rows,
    summary: Rows,
    *,
    chunk: int,
    window: int | None,
    summaries: int = 1,
    first_chunk_BC: Tensor | None = None,
    scale: float | None = None,
) -> SummaryAttention:
    """Let text rows read near text and far summaries, and summary rows the text of their chunk.

    A text row of chunk c reads the text up to itself of the chunks c - window .. c and the summaries of all
    chunks before those. A summary row reads the text of its own chunk and the summaries of its chunk up to
    itself. Each row's weights are one softmax over all that it reads. Memory grows with T, not T^2.

    Differentiable once in every float argument. Numbers are to be finite: a NaN or inf in a key or value may
    reach rows that do not read it. While torch exports or compiles, this is one node,
    `feedworks::summary_attention`; whoever loads such a program imports `feedworks_kernels` before.

    Args:
        text: query (B, H, T, D), key and value (B, G, T, D), rotary positions applied; H is a multiple of G.
            All of one type, fp32, fp16, bf16 or fp64. Any strides.
        summary: the same with S rows in place of T: `summaries` for each chunk, in order. An unfinished last
            chunk has them too, or has none.
        chunk: k, text rows per chunk.
        window: W, chunks before its own that a row reads raw; None: all, the plain causal attention.
        summaries: m, summary rows per chunk.
        first_chunk_BC: for packed documents, the first chunk of each chunk's document (`first_chunks`).
        scale: factor of the products of queries and keys; D^-1/2 unless given.

    Returns:
        (B, H, T, D) and (B, H, S, D) in the queries' type and layout; sums are kept in fp32 at least.

    Raises:
        ValueError: shapes, types, devices or sizes do not fit, a forward-mode derivative (jvp) is asked
            for, or `first_chunk_BC` is not a table of first
            chunks (on CUDA, where looking costs a wait, that is a device-side assertion).

    Source: arXiv 2604.24432 (Kwai Summary Attention).
    """
    check_sizes(chunk, window, summaries, scale)
    if scale is None:
        scale = max(1, text.query_BHTD.shape[-1]) ** -0.5
    if not torch.compiler.is_compiling():  # A traced program checks when it runs.
        check_derivatives(text, summary)
        check_rows(text, summary, Pattern(chunk, 0, summaries, scale, first_chunk_BC))
    unbounded = registration.UNBOUNDED if window is None else window
    out = registration.summary_attention(*text, *summary, first_chunk_BC, chunk, unbounded, summaries, scale)
    return SummaryAttention(*out[:2])


def first_chunks(document_BT: Tensor, chunk: int) -> Tensor:
    """Tell for each chunk where its document starts, for sequences that hold several documents.

    Looks at the numbers: on CUDA it waits for them.

    Args:
        document_BT: whole numbers, the document of each text row; where the number changes, one starts.
        chunk: k, text rows per chunk.

    Returns:
        first_chunk_BC, int32: the first chunk of the document of each chunk.

    Raises:
        ValueError: a document does not start at a border of chunks (pad the one before it), or the arguments
            are of another type or shape.
    """
    check_sizes(chunk, None, 1)
    whole = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
    if document_BT.ndim != 2 or document_BT.dtype not in whole:
        raise ValueError(
            f"document: expected whole numbers (B, T), got {document_BT.dtype} {tuple(document_BT.shape)}"
        )
    starts_BT = torch.ones_like(document_BT, dtype=torch.bool)
    starts_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    inside_BT = starts_BT & (torch.arange(document_BT.shape[1], device=document_BT.device) % chunk > 0)
    if inside_BT.any():
        row, place = inside_BT.nonzero()[0].tolist()
        raise ValueError(
            f"document {int(document_BT[row, place])} starts at row {place} of sequence {row}, inside a "
            f"chunk of {chunk} rows: fill up the document before it to a multiple of {chunk}"
        )
    starts_BC = starts_BT[:, ::chunk]
    chunk_C = torch.arange(starts_BC.shape[1], device=document_BT.device, dtype=torch.int32)
    if not starts_BC.numel():
        return starts_BC.int()
    return torch.where(starts_BC, chunk_C, 0).cummax(dim=1).values
