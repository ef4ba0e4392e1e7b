"""summary_attention in Triton: what is launched, over which tensors.

Shape letters: B batch, H query heads, G key and value heads, T text rows, S summary rows, D head width, C
chunks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from feedworks_kernels._device import on
from feedworks_kernels.summary_attention import eager
from feedworks_kernels.summary_attention.forward_kernel import forward_kernel
from feedworks_kernels.summary_attention.key_gradient_kernel import key_gradient_kernel
from feedworks_kernels.summary_attention.pattern import Forward, Gradients, Pattern, Rows
from feedworks_kernels.summary_attention.query_gradient_kernel import query_gradient_kernel
from feedworks_kernels.summary_attention.tiles_kernel import (
    INTERPRETED,
    WIDTHS,
    Tile,
    pack_of,
    precision,
    section_of,
    splits_of,
    tile_of,
)

__all__ = ["gradient", "summary_attention"]


class Read(NamedTuple):
    """Queries, their outputs and log-sum-exps, and what the gradient adds; `is_text`: of text rows."""

    is_text: bool
    query: Tensor
    grad: Tensor
    out: Tensor
    lse: Tensor
    delta: Tensor
    lse_log2: Tensor
    grad_query: Tensor


def summary_attention(text: Rows, summary: Rows, pattern: Pattern) -> Forward:
    """Two launches, one for the text rows and one for the summary rows."""
    if not _fits(text, pattern):
        return eager.summary_attention(text, summary, pattern)
    text, summary = _arranged(text, summary)
    outs = [torch.empty_like(rows.query_BHTD) for rows in (text, summary)]
    lses = [out.new_empty(out.shape[:3], dtype=torch.float32) for out in outs]
    shared = _shared(text, summary, pattern)
    with on(outs[0]):
        for rows, out, lse, is_text in zip((text, summary), outs, lses, (True, False), strict=True):
            _forward(rows.query_BHTD, text, summary, out, lse, pattern, shared | {"TEXT": is_text})
    return Forward(*outs, *lses)


def gradient(
    grad_text_BHTD: Tensor,
    grad_summary_BHSD: Tensor,
    text: Rows,
    summary: Rows,
    forward: Forward,
    pattern: Pattern,
) -> Gradients:
    """Four launches: the queries' gradients of either kind of rows, then those of their keys and values."""
    if not _fits(text, pattern):
        return eager.gradient(grad_text_BHTD, grad_summary_BHSD, text, summary, forward, pattern)
    text, summary = _arranged(text, summary)
    reads = [
        Read(
            is_text,
            *_pair(query, grad),
            out,
            lse,
            torch.empty_like(lse),
            torch.empty_like(lse),
            torch.empty_like(query),
        )
        for is_text, query, out, lse, grad in (
            (True, text.query_BHTD, forward.text_BHTD, forward.text_lse_BHT, grad_text_BHTD),
            (False, summary.query_BHTD, forward.summary_BHSD, forward.summary_lse_BHS, grad_summary_BHSD),
        )
    ]
    shared = _shared(text, summary, pattern) | {"scale": pattern.scale}
    with on(text.query_BHTD):
        for read in reads:
            _query_gradient(read, text, summary, pattern, shared | {"TEXT": read.is_text})
        ends_BC = _ends(pattern.first_chunk_BC)
        of_text = _key_gradient(text, reads, ends_BC, shared | {"TEXT": True})
        of_summary = _key_gradient(summary, reads, ends_BC, shared | {"TEXT": False})
    return Gradients(Rows(reads[0].grad_query, *of_text), Rows(reads[1].grad_query, *of_summary))


def _forward(
    query: Tensor,
    text: Rows,
    summary: Rows,
    out: Tensor,
    lse: Tensor,
    pattern: Pattern,
    shared: dict[str, Any],
) -> None:
    tile = tile_of("forward" if shared["TEXT"] else "summary", query, packed=shared["PACKED"])
    grid = _grid(query, shared["PACK"], tile)
    if not grid:
        return
    forward_kernel[(grid,)](
        query,
        *_keys(text, summary),
        pattern.first_chunk_BC,
        out,
        lse,
        *query.stride()[:3],
        *_key_strides(text, summary),
        *out.stride()[:3],
        num_rows=query.shape[2],
        section=_section(text, summary, pattern),
        BLOCK_T=tile.rows,
        BLOCK_N=tile.keys,
        BLOCK_E=tile.edge,
        **shared,
        **tile.options(),
    )


def _query_gradient(read: Read, text: Rows, summary: Rows, pattern: Pattern, shared: dict[str, Any]) -> None:
    tile = tile_of("query" if shared["TEXT"] else "summary_query", read.query, packed=shared["PACKED"])
    grid = _grid(read.query, shared["PACK"], tile)
    if not grid:
        return
    query_gradient_kernel[(grid,)](
        read.query,
        *_keys(text, summary),
        pattern.first_chunk_BC,
        read.out,
        read.lse,
        read.grad,
        read.delta,
        read.lse_log2,
        read.grad_query,
        *read.query.stride()[:3],
        *_key_strides(text, summary),
        *read.out.stride()[:3],
        *read.grad.stride()[:3],
        *read.grad_query.stride()[:3],
        num_rows=read.query.shape[2],
        section=_section(text, summary, pattern),
        BLOCK_T=tile.rows,
        BLOCK_N=tile.keys,
        BLOCK_E=tile.edge,
        **shared,
        **tile.options(),
    )


def _key_gradient(
    rows: Rows, reads: list[Read], ends_BC: Tensor | None, shared: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    key, value = rows.key_BGTD, rows.value_BGTD
    packs = shared["num_heads"] // shared["num_groups"] // shared["PACK"]
    tile = tile_of("key" if packs == 1 else "key_packs", key, packed=shared["PACKED"])
    heads = key.shape[0] * key.shape[1]
    num_tiles = triton.cdiv(key.shape[2], tile.keys)
    splits = 1 if shared["TEXT"] or not num_tiles else splits_of(num_tiles * heads, key.device)
    grad_key, grad_value = _parts(key, splits), _parts(value, splits)
    if not key.numel():
        return grad_key, grad_value
    key_gradient_kernel[(num_tiles * heads * splits,)](
        key,
        value,
        *(x for read in reads for x in (read.query, read.grad, read.lse_log2, read.delta)),
        ends_BC,
        grad_key,
        grad_value,
        *key.stride()[:2],
        _row_stride(key, value),
        *value.stride()[:2],
        *(x for read in reads for x in (*read.query.stride()[:3], read.grad.stride(0))),
        *(x for tensor in (grad_key, grad_value) for x in tensor.stride()[-4:-1]),
        # Tiles of summaries of one head read the same text rows, so they run side by side.
        section=heads if shared["TEXT"] else 1,
        SPLITS=splits,
        PACKS=packs,
        BLOCK_N=tile.keys,
        BLOCK_E=tile.edge,
        BLOCK_T=tile.rows,
        **shared,
        **tile.options(),
    )
    if splits == 1:
        return grad_key, grad_value
    return grad_key.sum(dim=0).to(key.dtype), grad_value.sum(dim=0).to(value.dtype)


def _fits(text: Rows, pattern: Pattern) -> bool:
    """Tell whether the kernels can; the rest (fp64, odd widths, a scale that turns it round) is eager."""
    query = text.query_BHTD
    return query.dtype != torch.float64 and query.shape[3] in WIDTHS and pattern.scale > 0


def _arranged(text: Rows, summary: Rows) -> tuple[Rows, Rows]:
    """Put the numbers of a row side by side, and the rows of keys and values all at one distance.

    One distance, because each one more costs registers that the tiles have no room for.
    """
    text, summary = Rows(*map(_in_line, text)), Rows(*map(_in_line, summary))
    if len({x.stride(2) for x in _keys(text, summary) if x.shape[2] > 1}) > 1:
        text, summary = (
            rows._replace(key_BGTD=rows.key_BGTD.contiguous(), value_BGTD=rows.value_BGTD.contiguous())
            for rows in (text, summary)
        )
    return text, summary


def _in_line(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _pair(query: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with the same distances of heads and of rows, which the kernels take from the query."""
    if grad.stride()[1:] == query.stride()[1:]:
        return query, grad
    room = torch.empty_like(query)
    if room.stride() == query.stride():
        return query, room.copy_(grad)
    return query.contiguous(), grad.contiguous()


def _row_stride(*tensors: Tensor) -> int:
    """Return the distance of rows that all have; of a single row it means nothing."""
    return max((x for x in tensors), key=lambda x: x.shape[2]).stride(2)


def _keys(text: Rows, summary: Rows) -> tuple[Tensor, ...]:
    return text.key_BGTD, text.value_BGTD, summary.key_BGTD, summary.value_BGTD


def _key_strides(text: Rows, summary: Rows) -> tuple[int, ...]:
    """Return the distances of sequences and heads of all four, and of rows, which all have in common."""
    key, value, summary_key, summary_value = keys = _keys(text, summary)
    of_text = (*key.stride()[:2], _row_stride(*keys), *value.stride()[:2])
    return (*of_text, *summary_key.stride()[:2], *summary_value.stride()[:2])


def _shared(text: Rows, summary: Rows, pattern: Pattern) -> dict[str, Any]:
    """Return the arguments that all kernels have."""
    query, num_groups = text.query_BHTD, text.key_BGTD.shape[1]
    return {
        "num_text": query.shape[2],
        "num_summaries": summary.query_BHTD.shape[2],
        "num_chunks": pattern.num_chunks(query.shape[2]),
        "num_heads": query.shape[1],
        "num_groups": num_groups,
        "chunk": pattern.chunk,
        "summaries": pattern.summaries,
        "window": pattern.window,
        "scale_log2": pattern.scale / math.log(2),
        "D": query.shape[3],
        "PACK": pack_of(query.shape[1] // num_groups),
        "PACKED": pattern.first_chunk_BC is not None,
        "PRECISION": precision(query.dtype),
        "UPCAST": INTERPRETED,
    }


def _grid(query: Tensor, pack: int, tile: Tile) -> int:
    """Return the number of programs: tiles of packed rows times packs of heads."""
    num_sequences, num_heads, num_rows, _ = query.shape
    return triton.cdiv(num_rows * pack, tile.rows) * num_sequences * num_heads // pack  # type: ignore[no-any-return]


def _section(text: Rows, summary: Rows, pattern: Pattern) -> int:
    """Return how many packs of heads run side by side: what they read at one time fits the cache."""
    near = min(text.key_BGTD.shape[2], pattern.chunk * (pattern.window + 1))
    far = summary.key_BGTD.shape[2]
    return section_of(near + far, text.key_BGTD.shape[3] * text.key_BGTD.element_size())


def _ends(first_chunk_BC: Tensor | None) -> Tensor | None:
    """Return the first chunk after the document of each chunk."""
    if first_chunk_BC is None:
        return None
    chunk_BC = torch.arange(first_chunk_BC.shape[1], dtype=torch.int32, device=first_chunk_BC.device)
    chunk_BC = chunk_BC.expand_as(first_chunk_BC).contiguous()
    return torch.searchsorted(first_chunk_BC.contiguous(), chunk_BC, right=True, out_int32=True)


def _parts(x: Tensor, splits: int) -> Tensor:
    """Return room for the gradient of `x`, or for that many parts of it."""
    if splits == 1:
        return torch.empty_like(x)
    return x.new_empty(splits, *x.shape, dtype=torch.float32)
