"""cache_attention, and new rows into the cache, in PyTorch operators.

Shape letters: B sequences, H query heads, G key and value heads, R = H / G, Q query rows per sequence (1 + m
new rows), N slots, L rows of a slot, D head width, P = m + k rows that may move.
"""

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
                out_BGRQD[b, :, :, q] = _attend(
                    query_BGRQD[b, :, :, q],
                    key_NGLD[slot, :, start:stop],
                    value_NGLD[slot, :, start:stop],
                    scale,
                )
    return out_BHQD


def _attend(query_GRD: Tensor, key_GLD: Tensor, value_GLD: Tensor, scale: float) -> Tensor:
    if query_GRD.dtype in (torch.float16, torch.bfloat16):  # products would round the scores to it
        rows = query_GRD[None], key_GLD[None], value_GLD[None]
        return F.scaled_dot_product_attention(*rows, scale=scale)[0]
    # For so few rows two products take 0.6 to 1 of the time of the fused form.
    score_GRL = torch.bmm(query_GRD * scale, key_GLD.transpose(1, 2))
    return torch.bmm(score_GRL.softmax(dim=2), value_GLD)


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


def write(
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    new_key_BGQD: Tensor,
    new_value_BGQD: Tensor,
    slot_B: Tensor,
    write_BQ: Tensor,
) -> None:
    """Put new keys and values into the rows `write_BQ`."""
    for cache, rows_BGQD in ((key_NGLD, new_key_BGQD), (value_NGLD, new_value_BGQD)):
        cache[slot_B[:, None], :, write_BQ] = rows_BGQD.transpose(1, 2)


def move(key_NGLD: Tensor, value_NGLD: Tensor, slot_B: Tensor, move_BP: Tensor) -> None:
    """Copy the first P rows of each slot to the rows `move_BP`: mostly to themselves."""
    if slot_B.device.type == "cpu":  # a row that stays need not be copied
        stay_P = torch.arange(move_BP.shape[1])
        moves_B = (move_BP != stay_P).any(dim=1)
        if not moves_B.any():
            return
        slot_B, move_BP = slot_B[moves_B], move_BP[moves_B]
    for cache in (key_NGLD, value_NGLD):
        rows_BPGD = cache[slot_B, :, : move_BP.shape[1]].transpose(1, 2)
        cache[slot_B[:, None], :, move_BP] = rows_BPGD
