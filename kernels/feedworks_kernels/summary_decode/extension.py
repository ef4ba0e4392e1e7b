"""Several tokens at once behind a sequence that is in the cache: a long prompt in parts, or a next turn.

On a CPU many tokens go block by block through the text rows' form of summary_attention; otherwise all new
rows go through one masked product.

Shape letters: T new text tokens, S summaries of the chunks that they end, Q = T + S new rows, G key and value
heads, H query heads, D head width, L rows of a slot, K rows that the new rows may read: those in the cache,
then themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from feedworks_kernels.summary_attention import eager, eager_summary
from feedworks_kernels.summary_attention.eager_text import Start
from feedworks_kernels.summary_attention.pattern import Pattern, Rows
from feedworks_kernels.summary_decode.layout import CacheLayout

# Text tokens from which on blocks are faster than one masked product.
_LEAST_TEXT = 64


class Extension(NamedTuple):
    """What the next tokens of one sequence read, the same for every layer of this layout.

    Attributes:
        length: tokens of the sequence before.
        num_text: T.
        num_summaries: S, m for each chunk that ends.
        mask_QK: whether a new row reads a row; None: the rows go block by block.
    """

    length: int
    num_text: int
    num_summaries: int
    mask_QK: Tensor | None


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
    if device.type == "cpu" and num_text >= _LEAST_TEXT:
        return Extension(length, num_text, (last - first) * num_summaries, None)
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


def attend(
    layout: CacheLayout,
    slot: tuple[Tensor, Tensor],
    text: Rows,
    summary: Rows,
    plan: Extension,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the attention of new text rows (1, H, T, D) and summary rows (1, H, S, D).

    Args:
        layout: of the cache.
        slot: its keys and values (G, L, D).
        text: new rows.
        summary: new rows.
        plan: which rows they read.
        scale: factor of the products.
    """
    if plan.mask_QK is None:
        return _by_blocks(layout, slot, text, summary, plan.length, scale)
    rows = Rows(*(torch.cat(pair, dim=2) for pair in zip(text, summary, strict=True)))
    key, value = (
        torch.cat((*_cached_rows(layout, cache_GLD, plan.length), new_BGQD[0]), dim=1)[None]
        for cache_GLD, new_BGQD in zip(slot, rows[1:], strict=True)
    )
    grouped = rows.query_BHTD.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(
        rows.query_BHTD, key, value, attn_mask=plan.mask_QK, scale=scale, enable_gqa=grouped
    )
    return out[:, :, : plan.num_text], out[:, :, plan.num_text :]


def _cached_rows(layout: CacheLayout, cache_GLD: Tensor, length: int) -> list[Tensor]:
    """Return the rows that a sequence holds: its unfinished chunk and the ring, then the summaries."""
    chunks, rest = divmod(length, layout.chunk)
    ring_end = layout.first_ring_row + min(chunks, layout.ring_chunks) * layout.chunk
    return [cache_GLD[:, layout.first_ring_row - rest : ring_end], *_summaries(layout, cache_GLD, length)]


def _summaries(layout: CacheLayout, cache_GLD: Tensor, length: int) -> list[Tensor]:
    """Return the summaries that a sequence holds, the oldest first."""
    kept = 0 if layout.window is None else length // layout.chunk * layout.summaries
    return [cache_GLD[:, layout.first_summary_row : layout.first_summary_row + kept]]


def _by_blocks(
    layout: CacheLayout,
    slot: tuple[Tensor, Tensor],
    text: Rows,
    summary: Rows,
    length: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """As `attend`, with the rows of the cache in their order: a block of rows reads two stretches of them."""
    chunks, rest = divmod(length, layout.chunk)
    held = min(chunks, layout.ring_chunks) * layout.chunk
    raw, far = (
        [
            torch.cat((*find(layout, cache_GLD, length), new_BGXD[0]), dim=1)[None]
            for cache_GLD, new_BGXD in zip(slot, new[1:], strict=True)
        ]
        for find, new in ((_ordered_text, text), (_summaries, summary))
    )
    window = layout.num_chunks if layout.window is None else layout.window
    pattern = Pattern(layout.chunk, window, layout.summaries, scale)
    text_BHTD, _ = eager.attend_text(
        Rows(text.query_BHTD, *raw),
        Rows(summary.query_BHTD, *far),
        pattern,
        Start(query=length, key=length - rest - held),
    )
    ended = slice(held, held + summary.query_BHTD.shape[2] // layout.summaries * layout.chunk)
    ended_text = Rows(text.query_BHTD, *(x[:, :, ended] for x in raw))
    summary_BHSD, _ = eager_summary.attend(ended_text, summary, pattern)
    return text_BHTD, summary_BHSD


def _ordered_text(layout: CacheLayout, cache_GLD: Tensor, length: int) -> list[Tensor]:
    """Return the text rows that a sequence holds, the oldest first."""
    chunks, rest = divmod(length, layout.chunk)
    ring = layout.ring_chunks
    first = layout.first_ring_row
    oldest = first + (chunks % ring * layout.chunk if chunks > ring > 0 else 0)
    end = first + min(chunks, ring) * layout.chunk
    return [cache_GLD[:, oldest:end], cache_GLD[:, first:oldest], cache_GLD[:, first - rest : first]]


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
