"""The gradient of summary_attention's keys and values in Triton, for text keys and for summary keys.

One program holds a tile of keys and goes over the rows that read it: whole tiles of text rows without a mask,
the other tiles of text rows, and summary rows. Rows are packed as in the forward pass, and the heads of a
group all run through the program that holds their keys: no atomics, the same sums in the same order always.

Shape letters: N tile of keys, T tile of rows, D head width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from feedworks_kernels.summary_attention.forward_kernel import RUNTIME, load_rows, packed_rows, store_rows
from feedworks_kernels.summary_attention.intervals_kernel import (
    chunk_entry,
    edge_tile,
    num_edge,
    num_whole,
    place,
    summary_rows_of,
    text_rows_of,
    tiles_of,
    whole_tile,
)


@triton.jit
def row_tiles(
    ends_ptr,
    start,
    num_keys,
    pattern,
    num_summaries,
    TEXT: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    EDGE: tl.constexpr,
):
    """Return the tiles of text rows that read a tile of keys, and the interval of summary rows that do."""
    chunk, summaries, window, num_text, num_chunks = pattern
    per_chunk = chunk if TEXT else summaries
    last = tl.minimum(start + BLOCK_N, num_keys) - 1
    chunk_a, chunk_b = start // per_chunk, last // per_chunk
    end_a = chunk_entry(ends_ptr, chunk_a, num_chunks, num_chunks, PACKED)
    end_b = chunk_entry(ends_ptr, chunk_b, num_chunks, num_chunks, PACKED)
    a0, a1 = text_rows_of(start, chunk_a, end_a, chunk, window, num_text, TEXT)
    b0, b1 = text_rows_of(last, chunk_b, end_b, chunk, window, num_text, TEXT)
    a2, _ = summary_rows_of(start, chunk_a, summaries, num_summaries, TEXT)
    _, b3 = summary_rows_of(last, chunk_b, summaries, num_summaries, TEXT)
    return tiles_of(a0, b0, a1, b1, ROWS, EDGE), a2, b3


@triton.jit
def text_rows_of_each(
    ends_ptr, start, pattern, TEXT: tl.constexpr, PACKED: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Return the interval of text rows that read each key of a tile."""
    chunk, summaries, window, num_text, num_chunks = pattern
    key_N = start + tl.arange(0, BLOCK_N)
    chunk_N = key_N // (chunk if TEXT else summaries)
    end_N = chunk_entry(ends_ptr, chunk_N, num_chunks, num_chunks, PACKED)
    return text_rows_of(key_N, chunk_N, end_N, chunk, window, num_text, TEXT)


@triton.jit
def summary_rows_of_each(start, pattern, num_summaries, TEXT: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the interval of summary rows that read each key of a tile.

    Chunks are counted another way than in `text_rows_of_each`, so that the compiler does not carry them
    through the loop between.
    """
    chunk, summaries, _, _, _ = pattern
    per_chunk = chunk if TEXT else summaries
    first = start // per_chunk
    chunk_N = first + (start - first * per_chunk + tl.arange(0, BLOCK_N)) // per_chunk
    return summary_rows_of(start + tl.arange(0, BLOCK_N), chunk_N, summaries, num_summaries, TEXT)


@triton.jit
def readers(pointers, strides, b, h, num_heads, num_rows):
    """Return where the rows of a group of heads start that read its keys, and how far they lie apart."""
    query_ptr, grad_ptr, lse_ptr, delta_ptr = pointers
    query_b, query_h, query_row, grad_b = strides
    query_ptr += b * query_b + h * query_h
    grad_ptr += b * grad_b + h * query_h
    statistic = (b * num_heads + h) * num_rows
    return query_ptr, grad_ptr, lse_ptr + statistic, delta_ptr + statistic, query_row, query_h, num_rows


@triton.jit
def share(number, part, PACKS: tl.constexpr, SPLITS: tl.constexpr):
    """Return the range of tiles that falls to one part, of `number` in each pack of heads."""
    return PACKS * number * part // SPLITS, PACKS * number * (part + 1) // SPLITS


@triton.jit
def pack_and_tile(index, number, PACKS: tl.constexpr):
    """Return first head and tile of the index-th of all tiles, `number` in each pack of heads."""
    if PACKS > 1:
        pack, tile = index // number, index % number
    else:
        pack, tile = 0, index
    return pack, tile


@triton.jit
def accumulate(
    row,
    pack,
    held,
    grad_key_ND,
    grad_value_ND,
    each,
    rows,
    scale_log2,
    MASKED: tl.constexpr,
    PACK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add what one tile of packed rows, from row `row` of the sequence on, gives to the keys' gradients."""
    keys_ND, values_ND = held
    D: tl.constexpr = keys_ND.shape[1]
    query_ptr, grad_ptr, lse_ptr, delta_ptr, row_stride, head_stride, num_rows = rows
    packed_T = tl.arange(0, BLOCK)
    row_T = row + packed_T // PACK
    first = row.to(tl.int64)
    offset = first * row_stride + pack * PACK * head_stride
    place_TD = packed_rows(row_stride, head_stride, PACK, BLOCK, D)
    query_ptrs, grad_ptrs = query_ptr + offset + place_TD, grad_ptr + offset + place_TD
    statistic = (first + pack * num_rows) * PACK
    lse_ptrs, delta_ptrs = lse_ptr + statistic + packed_T, delta_ptr + statistic + packed_T
    if MASKED:
        exists_T = row_T < num_rows
        query_TD = tl.load(query_ptrs, mask=exists_T[:, None], other=0.0)
        grad_TD = tl.load(grad_ptrs, mask=exists_T[:, None], other=0.0)
        lse_T = tl.load(lse_ptrs, mask=exists_T, other=0.0)
        delta_T = tl.load(delta_ptrs, mask=exists_T, other=0.0)
    else:
        query_TD = tl.load(query_ptrs)
        grad_TD = tl.load(grad_ptrs)
        lse_T = tl.load(lse_ptrs)
        delta_T = tl.load(delta_ptrs)
    if UPCAST:
        query_TD = query_TD.to(tl.float32)
        grad_TD = grad_TD.to(tl.float32)
    score_NT = tl.dot(keys_ND, tl.trans(query_TD), input_precision=PRECISION)
    if MASKED:
        low_N, high_N = each
        reads_NT = (row_T[None, :] >= low_N[:, None]) & (row_T[None, :] < high_N[:, None])
        score_NT = tl.where(reads_NT, score_NT, float("-inf"))
    weight_NT = tl.exp2(score_NT * scale_log2 - lse_T[None, :])
    grad_value_ND = tl.dot(weight_NT.to(grad_TD.dtype), grad_TD, grad_value_ND, input_precision=PRECISION)
    # The product starts from -delta, which so needs no registers while it runs.
    grad_weight_NT = tl.broadcast_to(-delta_T[None, :], weight_NT.shape)
    grad_weight_NT = tl.dot(values_ND, tl.trans(grad_TD), grad_weight_NT, input_precision=PRECISION)
    grad_score_NT = weight_NT * grad_weight_NT
    grad_key_ND = tl.dot(grad_score_NT.to(query_TD.dtype), query_TD, grad_key_ND, input_precision=PRECISION)
    return grad_key_ND, grad_value_ND


@triton.jit(do_not_specialize=RUNTIME)
def key_gradient_kernel(
    key_ptr,
    value_ptr,
    query_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    summary_query_ptr,
    summary_grad_ptr,
    summary_lse_ptr,
    summary_delta_ptr,
    end_ptr,
    grad_key_ptr,
    grad_value_ptr,
    key_b,
    key_g,
    key_row,
    value_b,
    value_g,
    query_b,
    query_h,
    query_row,
    grad_b,
    summary_query_b,
    summary_query_h,
    summary_query_row,
    summary_grad_b,
    grad_key_b,
    grad_key_g,
    grad_key_row,
    grad_value_b,
    grad_value_g,
    grad_value_row,
    num_text,
    num_summaries,
    num_chunks,
    num_heads,
    num_groups,
    chunk,
    summaries,
    window,
    section,
    scale,
    scale_log2,
    TEXT: tl.constexpr,
    D: tl.constexpr,
    PACK: tl.constexpr,
    PACKS: tl.constexpr,
    PACKED: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One tile of keys per program, those that most rows read first; or one of SPLITS parts of its rows."""
    num_keys = num_text if TEXT else num_summaries
    num_tiles = tl.cdiv(num_keys, BLOCK_N) * SPLITS
    tile, head = place(num_tiles, tl.num_programs(0) // num_tiles, section)
    part, start = tile % SPLITS, tile // SPLITS * BLOCK_N
    b, g = (head // num_groups).to(tl.int64), (head % num_groups).to(tl.int64)
    h = g * (PACKS * PACK)
    pattern = chunk, summaries, window, num_text, num_chunks
    ends_ptr = end_ptr + b * num_chunks if PACKED else end_ptr
    EDGE: tl.constexpr = BLOCK_E // PACK
    tiles, summary_a, summary_b = row_tiles(
        ends_ptr, start, num_keys, pattern, num_summaries, TEXT, PACKED, BLOCK_N, BLOCK_T // PACK, EDGE
    )
    keys_ND = load_rows(key_ptr + b * key_b + g * key_g, start, num_keys, (key_row, 0), 1, BLOCK_N, D)
    values_ND = load_rows(value_ptr + b * value_b + g * value_g, start, num_keys, (key_row, 0), 1, BLOCK_N, D)
    if UPCAST:
        keys_ND = keys_ND.to(tl.float32)
        values_ND = values_ND.to(tl.float32)
    held = keys_ND, values_ND
    dk, dv = tl.zeros((BLOCK_N, D), tl.float32), tl.zeros((BLOCK_N, D), tl.float32)

    pointers, strides = (query_ptr, grad_ptr, lse_ptr, delta_ptr), (query_b, query_h, query_row, grad_b)
    rows = readers(pointers, strides, b, h, num_heads, num_text)
    whole, edge = num_whole(tiles), num_edge(tiles)
    first, last = share(whole, part, PACKS, SPLITS)
    for i in range(first, last):
        pack, tile = pack_and_tile(i, whole, PACKS)
        # From the last rows back: all tiles of keys then read the same rows at about the same time.
        row = whole_tile(whole - 1 - tile, tiles, BLOCK_T // PACK)
        dk, dv = accumulate(
            row, pack, held, dk, dv, None, rows, scale_log2, False, PACK, PRECISION, UPCAST, BLOCK_T
        )
    each = text_rows_of_each(ends_ptr, start, pattern, TEXT, PACKED, BLOCK_N)
    first, last = share(edge, part, PACKS, SPLITS)
    for i in range(first, last):
        pack, tile = pack_and_tile(i, edge, PACKS)
        row = edge_tile(tile, tiles, EDGE)
        dk, dv = accumulate(
            row, pack, held, dk, dv, each, rows, scale_log2, True, PACK, PRECISION, UPCAST, BLOCK_E
        )

    pointers = summary_query_ptr, summary_grad_ptr, summary_lse_ptr, summary_delta_ptr
    strides = summary_query_b, summary_query_h, summary_query_row, summary_grad_b
    rows = readers(pointers, strides, b, h, num_heads, num_summaries)
    each = summary_rows_of_each(start, pattern, num_summaries, TEXT, BLOCK_N)
    of_summaries = (tl.maximum(summary_b - summary_a, 0) + EDGE - 1) // EDGE
    first, last = share(of_summaries, part, PACKS, SPLITS)
    for i in range(first, last):
        pack, tile = pack_and_tile(i, of_summaries, PACKS)
        row = summary_a + tile * EDGE
        dk, dv = accumulate(
            row, pack, held, dk, dv, each, rows, scale_log2, True, PACK, PRECISION, UPCAST, BLOCK_E
        )
    # Of several parts each writes its own sums, (part, sequence, group, key, width), added up afterwards.
    if SPLITS > 1:
        b += part.to(tl.int64) * (tl.num_programs(0) // (num_tiles * num_groups))
    grad_key_ptr += b * grad_key_b + g * grad_key_g
    grad_value_ptr += b * grad_value_b + g * grad_value_g
    store_rows(grad_key_ptr, dk * scale, start, num_keys, (grad_key_row, 0), 1, BLOCK_N, D)
    store_rows(grad_value_ptr, dv, start, num_keys, (grad_value_row, 0), 1, BLOCK_N, D)
