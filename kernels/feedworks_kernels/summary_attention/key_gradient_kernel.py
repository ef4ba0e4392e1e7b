"""The gradient of summary_attention's keys and values in Triton, for text keys and for summary keys.

One program holds a tile of keys and goes over the rows that read it: whole tiles of text rows without a mask,
the other tiles of text rows, and summary rows. Rows are packed as in the forward pass, and the heads of a
group all run through the program that holds their keys: no atomics, the same sums in the same order always.

Shape letters: N tile of keys, T tile of rows, D head width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from feedworks_kernels.summary_attention.forward_kernel import RUNTIME, packed_rows, store_rows
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
def accumulate(
    row,
    keys_ND,
    values_ND,
    grad_key_ND,
    grad_value_ND,
    low_N,
    high_N,
    query_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    query_row,
    query_h,
    num_rows,
    scale_log2,
    MASKED: tl.constexpr,
    PACK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Add what one tile of packed rows, from row `row` of the sequence on, gives to the keys' gradients."""
    packed_T = tl.arange(0, BLOCK_T)
    row_T = row + packed_T // PACK
    first = row.to(tl.int64)
    place_TD = packed_rows(query_row, query_h, PACK, BLOCK_T, D)
    query_ptrs = query_ptr + first * query_row + place_TD
    grad_ptrs = grad_ptr + first * query_row + place_TD
    lse_ptrs = lse_ptr + first * PACK + packed_T
    delta_ptrs = delta_ptr + first * PACK + packed_T
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
    part, tile = tile % SPLITS, tile // SPLITS
    b, g = (head // num_groups).to(tl.int64), (head % num_groups).to(tl.int64)
    h = g * (PACKS * PACK)
    start = tile * BLOCK_N
    exists_N = tl.arange(0, BLOCK_N) < num_keys - start
    last = tl.minimum(start + BLOCK_N, num_keys) - 1
    per_chunk = chunk if TEXT else summaries
    chunk_a, chunk_b = start // per_chunk, last // per_chunk
    ends_ptr = end_ptr + b * num_chunks if PACKED else end_ptr
    end_a = chunk_entry(ends_ptr, chunk_a, num_chunks, num_chunks, PACKED)
    end_b = chunk_entry(ends_ptr, chunk_b, num_chunks, num_chunks, PACKED)
    a0, a1 = text_rows_of(start, chunk_a, end_a, chunk, window, num_text, TEXT)
    b0, b1 = text_rows_of(last, chunk_b, end_b, chunk, window, num_text, TEXT)
    tiles = tiles_of(a0, b0, a1, b1, BLOCK_T // PACK, BLOCK_E // PACK)
    a2, _ = summary_rows_of(start, chunk_a, summaries, num_summaries, TEXT)
    _, b3 = summary_rows_of(last, chunk_b, summaries, num_summaries, TEXT)
    SUMMARIES: tl.constexpr = BLOCK_E // PACK
    of_summaries = (tl.maximum(b3 - a2, 0) + SUMMARIES - 1) // SUMMARIES

    first = start.to(tl.int64)
    key_ptrs = key_ptr + b * key_b + g * key_g + first * key_row + packed_rows(key_row, 0, 1, BLOCK_N, D)
    value_ptrs = value_ptr + b * value_b + g * value_g + first * key_row
    value_ptrs += packed_rows(key_row, 0, 1, BLOCK_N, D)
    keys_ND = tl.load(key_ptrs, mask=exists_N[:, None], other=0.0)
    values_ND = tl.load(value_ptrs, mask=exists_N[:, None], other=0.0)
    if UPCAST:
        keys_ND = keys_ND.to(tl.float32)
        values_ND = values_ND.to(tl.float32)
    query_ptr += b * query_b + h * query_h
    grad_ptr += b * grad_b + h * query_h
    lse_ptr += (b * num_heads + h) * num_text
    delta_ptr += (b * num_heads + h) * num_text
    grad_key_ND = tl.zeros((BLOCK_N, D), tl.float32)
    grad_value_ND = tl.zeros((BLOCK_N, D), tl.float32)

    whole = num_whole(tiles)
    for index in range(PACKS * whole * part // SPLITS, PACKS * whole * (part + 1) // SPLITS):
        pack = index // whole * PACK if PACKS > 1 else 0
        # From the last rows back: all tiles of keys then read the same rows at about the same time.
        row = whole_tile(whole - 1 - (index % whole if PACKS > 1 else index), tiles, BLOCK_T // PACK)
        grad_key_ND, grad_value_ND = accumulate(
            row,
            keys_ND,
            values_ND,
            grad_key_ND,
            grad_value_ND,
            None,
            None,
            query_ptr + pack * query_h,
            grad_ptr + pack * query_h,
            lse_ptr + pack * num_text,
            delta_ptr + pack * num_text,
            query_row,
            query_h,
            num_text,
            scale_log2,
            False,
            PACK,
            PRECISION,
            UPCAST,
            D,
            BLOCK_T,
        )
    key_N = start + tl.arange(0, BLOCK_N)
    chunk_N = key_N // per_chunk
    end_N = chunk_entry(ends_ptr, chunk_N, num_chunks, num_chunks, PACKED)
    low_N, high_N = text_rows_of(key_N, chunk_N, end_N, chunk, window, num_text, TEXT)
    edge = num_edge(tiles)
    for index in range(PACKS * edge * part // SPLITS, PACKS * edge * (part + 1) // SPLITS):
        pack = index // edge * PACK if PACKS > 1 else 0
        row = edge_tile(index % edge if PACKS > 1 else index, tiles, BLOCK_E // PACK)
        grad_key_ND, grad_value_ND = accumulate(
            row,
            keys_ND,
            values_ND,
            grad_key_ND,
            grad_value_ND,
            low_N,
            high_N,
            query_ptr + pack * query_h,
            grad_ptr + pack * query_h,
            lse_ptr + pack * num_text,
            delta_ptr + pack * num_text,
            query_row,
            query_h,
            num_text,
            scale_log2,
            True,
            PACK,
            PRECISION,
            UPCAST,
            D,
            BLOCK_E,
        )
    summary_query_ptr += b * summary_query_b + h * summary_query_h
    summary_grad_ptr += b * summary_grad_b + h * summary_query_h
    summary_lse_ptr += (b * num_heads + h) * num_summaries
    summary_delta_ptr += (b * num_heads + h) * num_summaries
    # Counted another way than chunk_N, so that it is not carried through the loops before.
    chunk_N = chunk_a + (start - chunk_a * per_chunk + tl.arange(0, BLOCK_N)) // per_chunk
    low_N, high_N = summary_rows_of(start + tl.arange(0, BLOCK_N), chunk_N, summaries, num_summaries, TEXT)
    for index in range(PACKS * of_summaries * part // SPLITS, PACKS * of_summaries * (part + 1) // SPLITS):
        pack = index // of_summaries * PACK if PACKS > 1 else 0
        grad_key_ND, grad_value_ND = accumulate(
            a2 + (index % of_summaries if PACKS > 1 else index) * SUMMARIES,
            keys_ND,
            values_ND,
            grad_key_ND,
            grad_value_ND,
            low_N,
            high_N,
            summary_query_ptr + pack * summary_query_h,
            summary_grad_ptr + pack * summary_query_h,
            summary_lse_ptr + pack * num_summaries,
            summary_delta_ptr + pack * num_summaries,
            summary_query_row,
            summary_query_h,
            num_summaries,
            scale_log2,
            True,
            PACK,
            PRECISION,
            UPCAST,
            D,
            BLOCK_E,
        )
    # Of several parts each writes its own sums, (part, sequence, group, key, width), added up afterwards.
    if SPLITS > 1:
        b += part.to(tl.int64) * (tl.num_programs(0) // (num_tiles * num_groups))
    grad_key_ptr += b * grad_key_b + g * grad_key_g
    grad_value_ptr += b * grad_value_b + g * grad_value_g
    store_rows(grad_key_ptr, grad_key_ND * scale, start, num_keys, grad_key_row, 0, 1, BLOCK_N, D)
    store_rows(grad_value_ptr, grad_value_ND, start, num_keys, grad_value_row, 0, 1, BLOCK_N, D)
