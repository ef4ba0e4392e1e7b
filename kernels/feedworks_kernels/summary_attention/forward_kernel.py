"""The forward pass of summary_attention in Triton, for text rows and for summary rows.

A tile of rows holds the same rows of PACK query heads that share their keys: packed row p is row p // PACK of
head p % PACK. Its keys are tiles of summaries and of text; those that all its rows read whole come first,
without a mask, then the rest. Both streams run through one loop, so that loads are under way all the time.

Arguments that belong together go together: `pattern` is (chunk, summaries, window, num_text, num_chunks),
`keys` is where keys and values start, those of the text and those of the summaries, and how far apart rows.

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
def load_rows(rows_ptr, start, num_rows, strides, PACK: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr):
    """Load a tile of packed rows from packed row `start` on, zeros for those past `num_rows`."""
    row_stride, head_stride = strides
    rows_ptr += (start // PACK).to(tl.int64) * row_stride
    rows_ptrs = rows_ptr + packed_rows(row_stride, head_stride, PACK, BLOCK, D)
    return tl.load(rows_ptrs, mask=(tl.arange(0, BLOCK) < num_rows - start)[:, None], other=0.0)


@triton.jit
def store_rows(
    out_ptr, rows_TD, start, num_rows, strides, PACK: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr
):
    """Store a tile of packed rows from packed row `start` on, those of `num_rows` that exist.

    The places are counted another way than where rows are loaded, so that the compiler does not carry them
    through the loops between, for which registers are short.
    """
    row_stride, head_stride = strides
    number_T = start + tl.arange(0, BLOCK)
    offset_T = (number_T // PACK).to(tl.int64) * row_stride
    if PACK > 1:
        offset_T += (number_T % PACK).to(tl.int64) * head_stride
    out_ptrs = out_ptr + offset_T[:, None] + tl.arange(0, D)[None, :]
    tl.store(out_ptrs, rows_TD.to(out_ptr.dtype.element_ty), mask=(number_T < num_rows)[:, None])


@triton.jit
def place_of_rows(num_rows, num_heads, num_groups, section, PACK: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return this program's first packed row, sequence, head and group; late rows, which read most, first."""
    packs = num_heads // PACK
    num_tiles = tl.cdiv(num_rows * PACK, BLOCK_T)
    tile, pack = place(num_tiles, tl.num_programs(0) // num_tiles, section)
    b, h = (pack // packs).to(tl.int64), (pack % packs * PACK).to(tl.int64)
    return (num_tiles - 1 - tile) * BLOCK_T, b, h, h // (num_heads // num_groups)


@triton.jit
def key_tiles(
    first_ptr,
    start,
    num_rows,
    pattern,
    TEXT: tl.constexpr,
    PACKED: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Return the tiles of text keys and the tiles of summary keys of a tile of rows."""
    chunk, summaries, window, num_text, num_chunks = pattern
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
    pattern,
    TEXT: tl.constexpr,
    PACKED: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Return the intervals of keys of each row of a tile."""
    chunk, summaries, window, num_text, num_chunks = pattern
    per_chunk = chunk if TEXT else summaries
    row_T = tl.minimum(start + tl.arange(0, BLOCK_T), num_rows - 1) // PACK
    first_T = chunk_entry(first_ptr, row_T // per_chunk, num_chunks, 0, PACKED)
    return keys_of(row_T, first_T, chunk, summaries, window, num_text, TEXT)


@triton.jit
def num_tiles_of(tiles, MASKED: tl.constexpr):
    """Return how many tiles of keys, of both streams, have a mask or have none."""
    text_tiles, summary_tiles = tiles
    if MASKED:
        number = num_edge(text_tiles) + num_edge(summary_tiles)
    else:
        number = num_whole(text_tiles) + num_whole(summary_tiles)
    return number


@triton.jit
def key_tile(index, tiles, keys, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """Return the index-th tile of keys: whether they are summaries, its first key, and where it lies."""
    text_tiles, summary_tiles = tiles
    key_ptr, value_ptr, summary_key_ptr, summary_value_ptr, key_row = keys
    if MASKED:
        num_of_summaries = num_edge(summary_tiles)
        of_summaries = edge_tile(index, summary_tiles, BLOCK)
        of_text = edge_tile(index - num_of_summaries, text_tiles, BLOCK)
    else:
        num_of_summaries = num_whole(summary_tiles)
        of_summaries = whole_tile(index, summary_tiles, BLOCK)
        of_text = whole_tile(index - num_of_summaries, text_tiles, BLOCK)
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
    """One tile of keys into the running softmax: its largest exponent, its total, its weighted values."""
    is_summary, start, key_ptr, value_ptr = key_tile(index, tiles, keys, MASKED, BLOCK)
    _, _, _, _, key_row = keys
    key_N = start + tl.arange(0, BLOCK)
    place_ND = packed_rows(key_row, 0, 1, BLOCK, D)
    if MASKED:
        num_text, num_summaries = lengths
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
    """One tile of rows per program."""
    start, b, h, g = place_of_rows(num_rows, num_heads, num_groups, section, PACK, BLOCK_T)
    end = num_rows * PACK
    pattern = chunk, summaries, window, num_text, num_chunks
    firsts_ptr = first_ptr + b * num_chunks if PACKED else first_ptr
    tiles = key_tiles(firsts_ptr, start, end, pattern, TEXT, PACKED, PACK, BLOCK_T, BLOCK_N, BLOCK_E)
    query_ptr += b * query_b + h * query_h
    query_TD = load_rows(query_ptr, start, end, (query_row, query_h), PACK, BLOCK_T, D)
    if UPCAST:
        query_TD = query_TD.to(tl.float32)
    keys = (
        key_ptr + b * key_b + g * key_g,
        value_ptr + b * value_b + g * value_g,
        summary_key_ptr + b * summary_key_b + g * summary_key_g,
        summary_value_ptr + b * summary_value_b + g * summary_value_g,
        key_row,
    )
    lengths = num_text, num_summaries
    # Finite, so that a row that has read nothing yet subtracts no two infinities.
    top_T = tl.full((BLOCK_T,), -1e38, tl.float32)
    total_T = tl.zeros((BLOCK_T,), tl.float32)
    sum_TD = tl.zeros((BLOCK_T, D), tl.float32)
    if TEXT:
        for i in range(num_tiles_of(tiles, False)):
            top_T, total_T, sum_TD = attend(
                i,
                query_TD,
                top_T,
                total_T,
                sum_TD,
                None,
                tiles,
                keys,
                lengths,
                scale_log2,
                False,
                PRECISION,
                UPCAST,
                D,
                BLOCK_N,
            )
    each = keys_of_each(firsts_ptr, start, end, pattern, TEXT, PACKED, PACK, BLOCK_T)
    for i in range(num_tiles_of(tiles, True)):
        top_T, total_T, sum_TD = attend(
            i,
            query_TD,
            top_T,
            total_T,
            sum_TD,
            each,
            tiles,
            keys,
            lengths,
            scale_log2,
            True,
            PRECISION,
            UPCAST,
            D,
            BLOCK_E,
        )
    out_ptr += b * out_b + h * out_h
    store_rows(out_ptr, sum_TD / total_T[:, None], start, end, (out_row, out_h), PACK, BLOCK_T, D)
    number_T = start + tl.arange(0, BLOCK_T)
    lse_ptrs = lse_ptr + (b * num_heads + h + number_T % PACK) * num_rows + number_T // PACK
    lse_T = (top_T + tl.log2(total_T)) * 0.6931471805599453
    tl.store(lse_ptrs, lse_T, mask=number_T < end)
