"""cache_attention in PyTorch operators. Shape letters: B, H, G, Q, N, L, D as in the package's __init__."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cache_attention(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """One call per slice on a CPU; elsewhere one masked product over all. As `cache_attention`."""
    run = _by_slices if query_BHQD.device.type == "cpu" else masked
    return run(query_BHQD, key_NGLD, value_NGLD, start_BQ, stop_BQ, slot_B, scale)


def _by_slices(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """The query heads of a group are the rows of one small matrix: no key is copied, none outside is read."""
    num_slots, num_groups, num_rows, width = key_NGLD.shape
    num_batch, num_heads, num_queries, _ = query_BHQD.shape
    query_BGRQD = query_BHQD.reshape(num_batch, num_groups, num_heads // num_groups, num_queries, width)
    out_BHQD = torch.zeros_like(query_BHQD, memory_format=torch.contiguous_format)
    out_BGRQD = out_BHQD.view(query_BGRQD.shape)
    starts, stops = start_BQ.tolist(), stop_BQ.tolist()
    for b, slot in enumerate(slot_B.tolist()):
        for q, (start, stop) in enumerate(zip(starts[b], stops[b], strict=True)):
            if not 0 <= slot < num_slots or start < 0 or stop > num_rows:
                out_BGRQD[b, :, :, q] = torch.nan
            elif start < stop:
                out_BGRQD[b, :, :, q] = F.scaled_dot_product_attention(
                    query_BGRQD[b : b + 1, :, :, q],
                    key_NGLD[slot : slot + 1, :, start:stop],
                    value_NGLD[slot : slot + 1, :, start:stop],
                    scale=scale,
                )[0]
    return out_BHQD


def masked(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """Everything in tensors, so that a GPU's queue never waits: it reads the whole cache of each sequence."""
    num_slots, num_groups, num_rows, width = key_NGLD.shape
    num_batch, num_heads, num_queries, _ = query_BHQD.shape
    inside_B = (slot_B >= 0) & (slot_B < num_slots)
    bad_BQ = (start_BQ < 0) | (stop_BQ > num_rows) | ~inside_B[:, None]
    row_L = torch.arange(num_rows, device=query_BHQD.device)
    seen_BQL = (row_L >= start_BQ[:, :, None]) & (row_L < stop_BQ[:, :, None]) & ~bad_BQ[:, :, None]
    chosen_B = torch.where(inside_B, slot_B, 0)
    key_BGLD, value_BGLD = key_NGLD[chosen_B], value_NGLD[chosen_B]
    # What no query reads may be anything, NaN too, and 0 * NaN is NaN.
    value_BGLD = value_BGLD.masked_fill(~seen_BQL.any(dim=1)[:, None, :, None], 0)
    kind = torch.promote_types(query_BHQD.dtype, torch.float32)
    query_BGRQD = query_BHQD.reshape(num_batch, num_groups, num_heads // num_groups, num_queries, width)
    score_BGRQL = torch.einsum("bgrqd,bgld->bgrql", query_BGRQD, key_BGLD).to(kind) * scale
    seen_BGRQL = seen_BQL[:, None, None]
    weight_BGRQL = score_BGRQL.masked_fill(~seen_BGRQL, -torch.inf).softmax(dim=-1)
    weight_BGRQL = weight_BGRQL.masked_fill(~seen_BGRQL, 0)  # a row without keys is 0 / 0
    out_BGRQD = torch.einsum("bgrql,bgld->bgrqd", weight_BGRQL.to(value_BGLD.dtype), value_BGLD)
    return out_BGRQD.flatten(1, 2).masked_fill(bad_BQ[:, None, :, None], torch.nan)
