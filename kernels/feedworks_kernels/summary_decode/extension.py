"""Several tokens at once behind a sequence that is in the cache: a long prompt in parts, or a next turn.

Shape letters: T new text tokens, S summaries of the chunks that they end, Q = T + S new rows, G key and value
heads, H query heads, D head width, L rows of a slot, K rows that the new rows may read: those in the cache,
then themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from feedworks_kernels.summary_attention.pattern import Rows
from feedworks_kernels.summary_decode.layout import CacheLayout


class Extension(NamedTuple):
    """What the next tokens of one sequence read, the same for every layer of this layout.

    Attributes:
        length: tokens of the sequence before.
        num_text: T.
        num_summaries: S, m for each chunk that ends.
        mask_QK: whether a new row reads a row.
    """

    length: int
    num_text: int
    num_summaries: int
    mask_QK: Tensor


class _Keys(NamedTuple):
    """Chunk of each row that may be read, its place in the order of the sequence, and whether it is text."""

    chunk_K: Tensor
    order_K: Tensor
    text_K: Tensor


def extension(layout: CacheLayout, length: int, num_text: int, device: torch.device) -> Extension:
    """Say what `num_text` tokens read behind `length` others.

    Raises:
        ValueError: there is no token, or there are more than the capacity.
    """
    if num_text < 1 or not 0 <= length <= layout.capacity - num_text:
        raise ValueError(
            f"{num_text} tokens behind {length}: expected at least 1, and together at most "
            f"{layout.capacity}, the capacity"
        )
    chunk, num_summaries = layout.chunk, layout.summaries
    first, last = length // chunk, (length + num_text) // chunk
    place_T = torch.arange(length, length + num_text, device=device)
    summary_S = torch.arange(first * num_summaries, last * num_summaries, device=device)
    query = _Keys(
        torch.cat((place_T // chunk, summary_S // num_summaries)),
        torch.cat((place_T, summary_S)),
        torch.arange(num_text + len(summary_S), device=device) < num_text,
    )
    old = _cached(layout, length, device)
    key = _Keys(*(torch.cat(pair) for pair in zip(old, query, strict=True)))
    return Extension(length, num_text, len(summary_S), _mask(layout, query, key))


def _cached(layout: CacheLayout, length: int, device: torch.device) -> _Keys:
    """Describe the rows of `cached_rows`; their order is before that of every new row."""
    chunks, rest = divmod(length, layout.chunk)
    ring, kept = layout.ring_chunks, min(chunks, layout.ring_chunks)
    place_R = torch.arange(kept, device=device)
    # Place j of the ring holds the newest chunk whose number is j modulo R.
    held_R = chunks - 1 - (chunks - 1 - place_R) % max(1, ring)
    text_K = torch.cat((held_R.new_full((rest,), chunks), held_R.repeat_interleave(layout.chunk)))
    num_summaries = 0 if layout.window is None else layout.summaries * chunks
    summary_K = torch.arange(num_summaries, device=device) // layout.summaries
    chunk_K = torch.cat((text_K, summary_K))
    return _Keys(
        chunk_K, torch.full_like(chunk_K, -1), torch.arange(len(chunk_K), device=device) < len(text_K)
    )


def _mask(layout: CacheLayout, query: _Keys, key: _Keys) -> Tensor:
    window = layout.num_chunks if layout.window is None else layout.window
    far_QK = query.chunk_K[:, None] - key.chunk_K
    earlier_QK = key.order_K <= query.order_K[:, None]
    by_text_QK = torch.where(key.text_K, earlier_QK & (far_QK <= window), far_QK > window)
    by_summary_QK = (far_QK == 0) & (key.text_K | (earlier_QK & (key.order_K >= 0)))
    return torch.where(query.text_K[:, None], by_text_QK, by_summary_QK)


def cached_rows(layout: CacheLayout, cache_GLD: Tensor, length: int) -> list[Tensor]:
    """Return the rows that a sequence holds: its unfinished chunk and the ring, then the summaries."""
    chunks, rest = divmod(length, layout.chunk)
    ring_end = layout.first_ring_row + min(chunks, layout.ring_chunks) * layout.chunk
    parts = [cache_GLD[:, layout.first_ring_row - rest : ring_end]]
    if layout.window is not None:
        stop = layout.first_summary_row + layout.summaries * chunks
        parts.append(cache_GLD[:, layout.first_summary_row : stop])
    return parts


def attend(
    layout: CacheLayout, slot: tuple[Tensor, Tensor], rows: Rows, plan: Extension, scale: float
) -> Tensor:
    """Return the attention (H, Q, D) of new rows (1, ., Q, D) over a slot's rows and themselves."""
    key, value = (
        torch.cat((*cached_rows(layout, cache_GLD, plan.length), new_BGQD[0]), dim=1)[None]
        for cache_GLD, new_BGQD in zip(slot, rows[1:], strict=True)
    )
    grouped = rows.query_BHTD.shape[1] != key.shape[1]
    out: Tensor = F.scaled_dot_product_attention(
        rows.query_BHTD, key, value, attn_mask=plan.mask_QK, scale=scale, enable_gqa=grouped
    )
    return out[0]


def store(layout: CacheLayout, cache_GLD: Tensor, length: int, text_GTD: Tensor, summary_GSD: Tensor) -> None:
    """Write the keys or values of new rows into a slot, behind `length` tokens."""
    chunk, ring = layout.chunk, layout.ring_chunks
    first, rest = divmod(length, chunk)
    if rest:  # the unfinished chunk goes on
        begun = cache_GLD[:, layout.first_ring_row - rest : layout.first_ring_row]
        text_GTD = torch.cat((begun, text_GTD), dim=1)
    num_whole, left = divmod(text_GTD.shape[1], chunk)
    if left:
        cache_GLD[:, layout.first_ring_row - left : layout.first_ring_row] = text_GTD[:, -left:]
    start = max(0, num_whole - ring)
    while ring and start < num_whole:
        place = (first + start) % ring
        stop = min(num_whole, start + ring - place)
        to = layout.first_ring_row + place * chunk
        cache_GLD[:, to : to + (stop - start) * chunk] = text_GTD[:, start * chunk : stop * chunk]
        start = stop
    if layout.window is not None:
        to, kept = layout.first_summary_row + layout.summaries * first, layout.summaries * num_whole
        cache_GLD[:, to : to + kept] = summary_GSD[:, :kept]
