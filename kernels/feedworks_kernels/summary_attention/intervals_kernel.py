"""Who reads whom, for the Triton kernels of summary_attention: intervals, and the tiles that cover them.

What one row reads of the text is an interval of text rows, and of the summaries an interval of summary rows;
the rows that read one key are an interval of text rows and one of summary rows. All of them move right with
the row or the key. So a tile needs no mask where its keys lie inside the intervals of its first and of its
last row, and elsewhere a mask is two comparisons. Division by the chunk is done once per row, outside loops.

Shape letters: T tile; rows and keys are numbers of text or summary rows in one sequence.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(num_tiles, num_heads, section):
    """Return tile and head (of all sequences) of this program.

    Programs of a section of heads stand together, ordered by tile: first tiles of every head first. A section
    has as many heads as the L2 cache holds keys of.
    """
    program = tl.program_id(0)
    before = program // (section * num_tiles) * section
    width = tl.minimum(section, num_heads - before)
    inside = program - before * num_tiles
    return inside // width, before + inside % width


@triton.jit
def chunk_entry(table_ptr, number, num_chunks, otherwise, PACKED: tl.constexpr):
    """Look chunks up in a table of documents; without documents, return what stands for all."""
    return tl.load(table_ptr + tl.minimum(number, num_chunks - 1)) if PACKED else number * 0 + otherwise


@triton.jit
def keys_of(row, first, chunk, summaries, window, num_text, TEXT: tl.constexpr):
    """Return the text keys [.., ..) and the summary keys [.., ..) that a row reads.

    `first` is the first chunk of the row's document. TEXT: `row` is a text row, else a summary row.
    """
    if TEXT:
        raw = tl.maximum(row // chunk - window, first)
        keys = chunk * raw, row + 1, summaries * first, summaries * raw
    else:
        number = row // summaries
        keys = chunk * number, tl.minimum(chunk * (number + 1), num_text), summaries * number, row + 1
    return keys


@triton.jit
def text_rows_of(key, number, end, chunk, window, num_text, TEXT: tl.constexpr):
    """Return the text rows [.., ..) that read a key.

    `number` is the key's chunk and `end` the first chunk after its document. TEXT: `key` is a text row, else
    a summary row.
    """
    if TEXT:
        rows = key, tl.minimum(chunk * tl.minimum(number + window + 1, end), num_text)
    else:
        last = tl.minimum(chunk * end, num_text)
        rows = tl.minimum(chunk * (number + window + 1), last), last
    return rows


@triton.jit
def summary_rows_of(key, number, summaries, num_summaries, TEXT: tl.constexpr):
    """Return the summary rows [.., ..) that read a key of chunk `number`."""
    end = summaries * (number + 1)
    return (summaries * number, tl.minimum(end, num_summaries)) if TEXT else (key, end)


@triton.jit
def tiles_of(low_first, low_last, high_first, high_last, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    """Cover the union of intervals that move right, [low_first, high_last).

    What lies inside all of them, [low_last, high_first), is covered by whole tiles of BLOCK as far as they
    fit, the rest before and after by tiles of EDGE, which need a mask.

    Returns:
        Where the tiles before start and how many they are, the same for the whole tiles and for those after.
    """
    before = tl.minimum(low_last, high_last) - low_first
    before = (tl.maximum(before, 0) + EDGE - 1) // EDGE
    whole_start = low_first + before * EDGE
    whole = tl.maximum(high_first - whole_start, 0) // BLOCK
    after_start = whole_start + whole * BLOCK
    after = (tl.maximum(high_last - after_start, 0) + EDGE - 1) // EDGE
    return low_first, before, whole_start, whole, after_start, after


@triton.jit
def whole_tile(number, tiles, BLOCK: tl.constexpr):
    """Return where the `number`-th tile without a mask starts."""
    _, _, start, _, _, _ = tiles
    return start + number * BLOCK


@triton.jit
def edge_tile(number, tiles, EDGE: tl.constexpr):
    """Return where the `number`-th tile with a mask starts."""
    before_start, before, _, _, after_start, _ = tiles
    return tl.where(number < before, before_start + number * EDGE, after_start + (number - before) * EDGE)


@triton.jit
def num_whole(tiles):
    """Return how many tiles need no mask."""
    _, _, _, whole, _, _ = tiles
    return whole


@triton.jit
def num_edge(tiles):
    """Return how many tiles need a mask."""
    _, before, _, _, _, after = tiles
    return before + after
