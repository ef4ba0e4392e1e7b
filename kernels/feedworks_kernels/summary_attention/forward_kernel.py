"""The forward pass of summary_attention in Triton, for text rows and for summary rows.

A tile of rows holds the same rows of PACK query heads that share their keys: packed row p is row p // PACK of
head p % PACK. Its keys are tiles of summaries and of text; those that all its rows read whole come first,
without a mask, then the rest. Both streams run through one loop, so that loads are under way all the time.

Shape letters: T tile of rows, N tile of keys, D head width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from feedworks_kernels.summary_attention.intervals_kernel import (
    chunk_entry,
    edge_tile,
    keys_of,
    num_edge,
    num_whole,
    place,
    tiles_of,
    whole_tile,
)

# Arguments that change with every call and whose value changes nothing in the code.
RUNTIME = (
    "num_rows",
    "num_text",
    "num_summaries",
    "num_chunks",
    "num_heads",
    "num_groups",
    "chunk",
    "summaries",
    "window",
    "section",
)


@triton.jit
def packed_rows(row_stride, head_stride, PACK: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr):
    """Return the places of a tile's packed rows, (T, D), counted from its first row in the first head."""
    number_T = tl.arange(0, BLOCK)
    offset_T = (number_T // PACK) * row_stride
    if PACK > 1:
        offset_T += (number_T % PACK) * head_stride
    return offset_T[:, None] + tl.arange(0, D)[None, :]


@triton.jit
def store_rows(
    out_ptr,
    value_TD,
    start,
    num_rows,
    row_stride,
    head_stride,
    PACK: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    """Store a tile of packed rows from packed row `start` on, those of `num_rows` packed rows that exist.

    The places are counted another way than where rows are loaded, so that the compiler does not carry them
    through the loops between, for which registers are short.
    """
    number_T = start + tl.arange(0, BLOCK)
    offset_T = (number_T // PACK).to(tl.int64) * row_stride
    if PACK > 1:
        offset_T += (number_T % PACK).to(tl.int64) * head_stride
    out_ptrs = out_ptr + offset_T[:, None] + tl.arange(0, D)[None, :]
    tl.store(out_ptrs, value_TD.to(out_ptr.dtype.element_ty), mask=(number_T < num_rows)[:, None])


@triton.jit
def key_tiles(
    first_ptr,
    start,
    num_rows,
    num_text,
    num_chunks,
    chunk,
    summaries,
    window,
    TEXT: tl.constexpr,
    PACKED: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Return the tiles of text keys and the tiles of summary keys of a tile of rows."""
    per_chunk = chunk if TEXT else summaries
    a = start // PACK
    b = tl.minimum(start + BLOCK_T, num_rows) // PACK - 1
    first_a = chunk_entry(first_ptr, a // per_chunk, num_chunks, 0, PACKED)
    first_b = chunk_entry(first_ptr, b // per_chunk, num_chunks, 0, PACKED)
    a0, a1, a2, a3 = keys_of(a, first_a, chunk, summaries, window, num_text, TEXT)
    b0, b1, b2, b3 = keys_of(b, first_b, chunk, summaries, window, num_text, TEXT)
    # Summary rows read little; they have one loop, with a mask: no tile is whole.
    WHOLE: tl.constexpr = BLOCK_N if TEXT else 2**30
    return tiles_of(a0, b0, a1, b1, WHOLE, BLOCK_E), tiles_of(a2, b2, a3, b3, WHOLE, BLOCK_E)


@triton.jit
def keys_of_each(
    first_ptr,
    start,
    num_rows,
    num_text,
    num_chunks,
    chunk,
    summaries,
    window,
    TEXT: tl.constexpr,
    PACKED: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Return the intervals of keys of each row of a tile."""
    per_chunk = chunk if TEXT else summaries
    row_T = tl.minimum(start + tl.arange(0, BLOCK_T), num_rows - 1) // PACK
    first_T = chunk_entry(first_ptr, row_T // per_chunk, num_chunks, 0, PACKED)
    return keys_of(row_T, first_T, chunk, summaries, window, num_text, TEXT)


@triton.jit
def key_tile(
    index,
    text_tiles,
    summary_tiles,
    key_ptr,
    value_ptr,
    summary_key_ptr,
    summary_value_ptr,
    key_row,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Return the index-th tile of keys: whether they are summaries, its first key, and where it lies."""
    if MASKED:
        num_of_summaries = num_edge(summary_tiles)
        of_summaries = edge_tile(index, summary_tiles, BLOCK_N)
        of_text = edge_tile(index - num_of_summaries, text_tiles, BLOCK_N)
    else:
        num_of_summaries = num_whole(summary_tiles)
        of_summaries = whole_tile(index, summary_tiles, BLOCK_N)
        of_text = whole_tile(index - num_of_summaries, text_tiles, BLOCK_N)
    is_summary = index < num_of_summaries
    start = tl.where(is_summary, of_summaries, of_text)
    offset = start.to(tl.int64) * key_row
    key_ptr = tl.where(is_summary, summary_key_ptr, key_ptr) + offset
    value_ptr = tl.where(is_summary, summary_value_ptr, value_ptr) + offset
    return is_summary, start, key_ptr, value_ptr


@triton.jit
def visible(is_summary, key_N, each):
    """Return which rows (T) read which keys (N)."""
    text_low_T, text_high_T, summary_low_T, summary_high_T = each
    low_T = tl.where(is_summary, summary_low_T, text_low_T)
    high_T = tl.where(is_summary, summary_high_T, text_high_T)
    return (key_N[None, :] >= low_T[:, None]) & (key_N[None, :] < high_T[:, None])


@triton.jit
def attend(
    index,
    query_TD,
    top_T,
    total_T,
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
    """One tile of keys into the running softmax: its largest exponent, its total, its weighted values."""
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
    else:
        keys_ND = tl.load(key_ptr + place_ND)
    if UPCAST:
        keys_ND = keys_ND.to(tl.float32)
    score_TN = tl.dot(query_TD, tl.trans(keys_ND), input_precision=PRECISION)
    if MASKED:
        score_TN = tl.where(visible(is_summary, key_N, each), score_TN, float("-inf"))
    new_T = tl.maximum(top_T, tl.max(score_TN, axis=1) * scale_log2)
    weight_TN = tl.exp2(score_TN * scale_log2 - new_T[:, None])
    fade_T = tl.exp2(top_T - new_T)
    total_T = total_T * fade_T + tl.sum(weight_TN, axis=1)
    sum_TD = sum_TD * fade_T[:, None]
    if MASKED:
        values_ND = tl.load(value_ptr + place_ND, mask=exists_N[:, None], other=0.0)
    else:
        values_ND = tl.load(value_ptr + place_ND)
    if UPCAST:
        values_ND = values_ND.to(tl.float32)
    sum_TD = tl.dot(weight_TN.to(values_ND.dtype), values_ND, sum_TD, input_precision=PRECISION)
    return new_T, total_T, sum_TD


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    summary_key_ptr,
    summary_value_ptr,
    first_ptr,
    out_ptr,
    lse_ptr,
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
    exists_T = tl.arange(0, BLOCK_T) < num_rows * PACK - start
    query_ptrs = query_ptr + b * query_b + h * query_h + first * query_row
    query_ptrs += packed_rows(query_row, query_h, PACK, BLOCK_T, D)
    query_TD = tl.load(query_ptrs, mask=exists_T[:, None], other=0.0)
    if UPCAST:
        query_TD = query_TD.to(tl.float32)
    key_ptr += b * key_b + g * key_g
    value_ptr += b * value_b + g * value_g
    summary_key_ptr += b * summary_key_b + g * summary_key_g
    summary_value_ptr += b * summary_value_b + g * summary_value_g
    # Finite, so that a row that has read nothing yet subtracts no two infinities.
    top_T = tl.full((BLOCK_T,), -1e38, tl.float32)
    total_T = tl.zeros((BLOCK_T,), tl.float32)
    sum_TD = tl.zeros((BLOCK_T, D), tl.float32)
    if TEXT:
        for index in range(num_whole(text_tiles) + num_whole(summary_tiles)):
            top_T, total_T, sum_TD = attend(
                index,
                query_TD,
                top_T,
                total_T,
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
        top_T, total_T, sum_TD = attend(
            index,
            query_TD,
            top_T,
            total_T,
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
    out_ptr += b * out_b + h * out_h
    store_rows(out_ptr, sum_TD / total_T[:, None], start, num_rows * PACK, out_row, out_h, PACK, BLOCK_T, D)
    number_T = start + tl.arange(0, BLOCK_T)
    lse_ptrs = lse_ptr + (b * num_heads + h + number_T % PACK) * num_rows + number_T // PACK
    lse_T = (top_T + tl.log2(total_T)) * 0.6931471805599453
    tl.store(lse_ptrs, lse_T, mask=number_T < num_rows * PACK)
