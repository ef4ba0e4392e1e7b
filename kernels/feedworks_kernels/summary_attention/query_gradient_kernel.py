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
    load_rows,
    num_tiles_of,
    packed_rows,
    place_of_rows,
    store_rows,
    visible,
)


@triton.jit
def differentiate(
    index,
    rows,
    sum_TD,
    each,
    tiles,
    keys,
    lengths,
    scale_log2,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add what one tile of keys gives to the gradient of the queries, before the scale."""
    query_TD, grad_TD, lse_T, delta_T = rows
    is_summary, start, key_ptr, value_ptr = key_tile(index, tiles, keys, MASKED, BLOCK)
    _, _, _, _, key_row = keys
    key_N = start + tl.arange(0, BLOCK)
    place_ND = packed_rows(key_row, 0, 1, BLOCK, D)
    if MASKED:
        num_text, num_summaries = lengths
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
    """One tile of rows per program."""
    start, b, h, g = place_of_rows(num_rows, num_heads, num_groups, section, PACK, BLOCK_T)
    end = num_rows * PACK
    pattern = chunk, summaries, window, num_text, num_chunks
    firsts_ptr = first_ptr + b * num_chunks if PACKED else first_ptr
    tiles = key_tiles(firsts_ptr, start, end, pattern, TEXT, PACKED, PACK, BLOCK_T, BLOCK_N, BLOCK_E)
    grad_ptr += b * grad_b + h * grad_h
    out_ptr += b * out_b + h * out_h
    query_ptr += b * query_b + h * query_h
    grad_TD = load_rows(grad_ptr, start, end, (grad_row, grad_h), PACK, BLOCK_T, D)
    out_TD = load_rows(out_ptr, start, end, (out_row, out_h), PACK, BLOCK_T, D)
    query_TD = load_rows(query_ptr, start, end, (query_row, query_h), PACK, BLOCK_T, D)
    number_T = start + tl.arange(0, BLOCK_T)
    exists_T = number_T < end
    delta_T = tl.sum(out_TD.to(tl.float32) * grad_TD.to(tl.float32), axis=1)
    lse_ptrs = lse_ptr + (b * num_heads + h + number_T % PACK) * num_rows + number_T // PACK
    lse_T = tl.load(lse_ptrs, mask=exists_T, other=0.0) * 1.4426950408889634
    # As the gradient of the keys reads them: packed, to the base of 2.
    packed_T = (b * num_heads + h) * num_rows + number_T
    tl.store(delta_ptr + packed_T, delta_T, mask=exists_T)
    tl.store(lse_log2_ptr + packed_T, lse_T, mask=exists_T)
    if UPCAST:
        query_TD = query_TD.to(tl.float32)
        grad_TD = grad_TD.to(tl.float32)
    keys = (
        key_ptr + b * key_b + g * key_g,
        value_ptr + b * value_b + g * value_g,
        summary_key_ptr + b * summary_key_b + g * summary_key_g,
        summary_value_ptr + b * summary_value_b + g * summary_value_g,
        key_row,
    )
    rows, lengths = (query_TD, grad_TD, lse_T, delta_T), (num_text, num_summaries)
    sum_TD = tl.zeros((BLOCK_T, D), tl.float32)
    if TEXT:
        for i in range(num_tiles_of(tiles, False)):
            sum_TD = differentiate(
                i, rows, sum_TD, None, tiles, keys, lengths, scale_log2, False, PRECISION, UPCAST, D, BLOCK_N
            )
    each = keys_of_each(firsts_ptr, start, end, pattern, TEXT, PACKED, PACK, BLOCK_T)
    for i in range(num_tiles_of(tiles, True)):
        sum_TD = differentiate(
            i, rows, sum_TD, each, tiles, keys, lengths, scale_log2, True, PRECISION, UPCAST, D, BLOCK_E
        )
    grad_query_ptr += b * grad_query_b + h * grad_query_h
    strides = grad_query_row, grad_query_h
    store_rows(grad_query_ptr, sum_TD * scale, start, end, strides, PACK, BLOCK_T, D)
