"""`places` for a caller that knows all lengths: worked out on the host, and moved to the device at once.

`layout.places` takes some thirty launches, whatever the batch; this takes one copy. Shape letters as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from feedworks_kernels.summary_decode.layout import CacheLayout

Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def host_places(layout: CacheLayout, slot_B: Array, length_B: Array, *, summaries: bool) -> tuple[Array, ...]:
    """Return the fields of `Places` for a step that is known to be possible.

    Args:
        layout: sizes.
        slot_B: slots that are there, each once.
        length_B: tokens of each, fewer than the capacity.
        summaries: they are given for at least the sequences whose chunk ends; False: no chunk ends.
    """
    chunk, ring = layout.chunk, layout.ring_chunks
    num_summaries = layout.summaries if summaries else 0
    chunk_B, index_B = np.divmod(length_B, chunk)
    ends_B = index_B == chunk - 1
    batch, own_m = len(slot_B), np.arange(num_summaries - 1, -1, -1)
    write_BQ = np.concatenate(
        ((layout.first_ring_row - 1 - index_B)[:, None], np.broadcast_to(own_m, (batch, num_summaries))),
        axis=1,
    )
    stop_BQ = np.empty_like(write_BQ)
    raw_B = np.minimum(chunk_B, ring)
    stop_BQ[:, 0] = layout.first_ring_row + raw_B * chunk + (chunk_B - raw_B) * layout.summaries
    stop_BQ[:, 1:] = np.where(ends_B, layout.first_ring_row, 0)[:, None]
    move_BP = np.tile(np.arange(layout.summaries + chunk), (batch, 1))
    if summaries:
        _move(layout, move_BP, chunk_B, ends_B)
    return slot_B, write_BQ, stop_BQ, write_BQ, move_BP, np.ones_like(slot_B)


def _move(layout: CacheLayout, move_BP: Array, chunk_B: Array, ends_B: Array) -> None:
    """Say where scratch and chunk go of the sequences whose chunk ends."""
    ended_S, num_summaries = chunk_B[ends_B, None], layout.summaries
    moved_SP = move_BP[ends_B]
    if layout.window is not None:
        last_S = layout.first_summary_row + (ended_S + 1) * num_summaries - 1
        moved_SP[:, :num_summaries] = last_S - np.arange(num_summaries)
    if layout.ring_chunks:
        moved_SP[:, num_summaries:] += (ended_S % layout.ring_chunks + 1) * layout.chunk
    move_BP[ends_B] = moved_SP


def to_device(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """Move arrays of int64 in one copy."""
    sizes = [array.size for array in arrays]
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device)
    return [part.view(array.shape) for part, array in zip(torch.split(flat, sizes), arrays, strict=True)]
