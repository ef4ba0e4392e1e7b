"""The gradient of summary_attention's queries in Triton, for text rows and for summary rows.

The same tiles in the same order as in the forward pass. Weights come again from scores and log-sum-exps. On
the way each row's sum of output times its gradient is stored, which the keys' gradient needs as well.

Shape letters: T tile of rows, N tile of keys, D head width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from feedworks_kernels.summary_attention.forward_kernel import (
    RUNTIME,
    key_tile,
    key_tiles,
    keys_of_each,
    packed_rows,
    store_rows,
    visible,
)
from feedworks_kernels.summary_attention.intervals_kernel import num_edge, num_whole, place


@triton.jit
def differentiate(
    index,
    query_TD,
    grad_TD,
    lse_T,
    delta_T,
    sum_TD,
    each,
    text_tiles,
    summary_tiles,
    key_ptr,
    value_ptr,
    summary_key_ptr,
    summary_value_ptr,
    key_row,
    num_text,
    num_summaries,
    scale_log2,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add what one tile of keys gives to the gradient of the queries, before the scale."""
    is_summary, start, key_ptr, value_ptr = key_tile(
        index,
        text_tiles,
        summary_tiles,
        key_ptr,
        value_ptr,
        summary_key_ptr,
        summary_value_ptr,
        key_row,
        MASKED,
        BLOCK_N,
    )
    key_N = start + tl.arange(0, BLOCK_N)
    place_ND = packed_rows(key_row, 0, 1, BLOCK_N, D)
    if MASKED:
        exists_N = key_N < tl.where(is_summary, num_summaries, num_text)
        keys_ND = tl.load(key_ptr + place_ND, mask=exists_N[:, None], other=0.0)
        values_ND = tl.load(value_ptr + place_ND, mask=exists_N[:, None], other=0.0)
    else:
        keys_ND = tl.load(key_ptr + place_ND)
        values_ND = tl.load(value_ptr + place_ND)
    if UPCAST:
        keys_ND = keys_ND.to(tl.float32)
        values_ND = values_ND.to(tl.float32)
    score_TN = tl.dot(query_TD, tl.trans(keys_ND), input_precision=PRECISION)
    if MASKED:
        score_TN = tl.where(visible(is_summary, key_N, each), score_TN, float("-inf"))
    weight_TN = tl.exp2(score_TN * scale_log2 - lse_T[:, None])
    grad_weight_TN = tl.dot(grad_TD, tl.trans(values_ND), input_precision=PRECISION)
    grad_score_TN = weight_TN * (grad_weight_TN - delta_T[:, None])
    return tl.dot(grad_score_TN.to(keys_ND.dtype), keys_ND, sum_TD, input_precision=PRECISION)


@triton.jit(do_not_specialize=RUNTIME)
def query_gradient_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    summary_key_ptr,
    summary_value_ptr,
    first_ptr,
    out_ptr,
    lse_ptr,
    grad_ptr,
    delta_ptr,
    lse_log2_ptr,
    grad_query_ptr,
    query_b,
    query_h,
    query_row,
    key_b,
    key_g,
    key_row,
    value_b,
    value_g,
    summary_key_b,
    summary_key_g,
    summary_value_b,
    summary_value_g,
    out_b,
    out_h,
    out_row,
    grad_b,
    grad_h,
    grad_row,
    grad_query_b,
    grad_query_h,
    grad_query_row,
    num_rows,
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
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One tile of rows per program; text rows that read most come first."""
    heads = num_heads // PACK
    num_tiles = tl.cdiv(num_rows * PACK, BLOCK_T)
    tile, head = place(num_tiles, tl.num_programs(0) // num_tiles, section)
    tile = num_tiles - 1 - tile
    b, h = (head // heads).to(tl.int64), (head % heads * PACK).to(tl.int64)
    g = h // (num_heads // num_groups)
    start = tile * BLOCK_T
    first = (start // PACK).to(tl.int64)
    firsts_ptr = first_ptr + b * num_chunks if PACKED else first_ptr
    text_tiles, summary_tiles = key_tiles(
        firsts_ptr,
        start,
        num_rows * PACK,
        num_text,
        num_chunks,
        chunk,
        summaries,
        window,
        TEXT,
        PACKED,
        PACK,
        BLOCK_T,
        BLOCK_N,
        BLOCK_E,
    )
    number_T = start + tl.arange(0, BLOCK_T)
    exists_T = tl.arange(0, BLOCK_T) < num_rows * PACK - start
    exists_T1 = exists_T[:, None]
    grad_ptrs = grad_ptr + b * grad_b + h * grad_h + first * grad_row
    grad_ptrs += packed_rows(grad_row, grad_h, PACK, BLOCK_T, D)
    grad_TD = tl.load(grad_ptrs, mask=exists_T1, other=0.0)
    out_ptrs = out_ptr + b * out_b + h * out_h + first * out_row
    out_ptrs += packed_rows(out_row, out_h, PACK, BLOCK_T, D)
    out_TD = tl.load(out_ptrs, mask=exists_T1, other=0.0)
    delta_T = tl.sum(out_TD.to(tl.float32) * grad_TD.to(tl.float32), axis=1)
    lse_ptrs = lse_ptr + (b * num_heads + h + number_T % PACK) * num_rows + number_T // PACK
    lse_T = tl.load(lse_ptrs, mask=exists_T, other=0.0) * 1.4426950408889634
    # As the gradient of the keys reads them: packed, to the base of 2.
    packed_T = (b * num_heads + h) * num_rows + number_T
    tl.store(delta_ptr + packed_T, delta_T, mask=exists_T)
    tl.store(lse_log2_ptr + packed_T, lse_T, mask=exists_T)
    query_ptrs = query_ptr + b * query_b + h * query_h + first * query_row
    query_ptrs += packed_rows(query_row, query_h, PACK, BLOCK_T, D)
    query_TD = tl.load(query_ptrs, mask=exists_T1, other=0.0)
    if UPCAST:
        query_TD = query_TD.to(tl.float32)
        grad_TD = grad_TD.to(tl.float32)
    key_ptr += b * key_b + g * key_g
    value_ptr += b * value_b + g * value_g
    summary_key_ptr += b * summary_key_b + g * summary_key_g
    summary_value_ptr += b * summary_value_b + g * summary_value_g
    sum_TD = tl.zeros((BLOCK_T, D), tl.float32)
    if TEXT:
        for index in range(num_whole(text_tiles) + num_whole(summary_tiles)):
            sum_TD = differentiate(
                index,
                query_TD,
                grad_TD,
                lse_T,
                delta_T,
                sum_TD,
                None,
                text_tiles,
                summary_tiles,
                key_ptr,
                value_ptr,
                summary_key_ptr,
                summary_value_ptr,
                key_row,
                num_text,
                num_summaries,
                scale_log2,
                False,
                PRECISION,
                UPCAST,
                D,
                BLOCK_N,
            )
    each = keys_of_each(
        firsts_ptr,
        start,
        num_rows * PACK,
        num_text,
        num_chunks,
        chunk,
        summaries,
        window,
        TEXT,
        PACKED,
        PACK,
        BLOCK_T,
    )
    for index in range(num_edge(text_tiles) + num_edge(summary_tiles)):
        sum_TD = differentiate(
            index,
            query_TD,
            grad_TD,
            lse_T,
            delta_T,
            sum_TD,
            each,
            text_tiles,
            summary_tiles,
            key_ptr,
            value_ptr,
            summary_key_ptr,
            summary_value_ptr,
            key_row,
            num_text,
            num_summaries,
            scale_log2,
            True,
            PRECISION,
            UPCAST,
            D,
            BLOCK_E,
        )
    grad_query_ptr += b * grad_query_b + h * grad_query_h
    store_rows(
        grad_query_ptr, sum_TD * scale, start, num_rows * PACK, grad_query_row, grad_query_h, PACK, BLOCK_T, D
    )
