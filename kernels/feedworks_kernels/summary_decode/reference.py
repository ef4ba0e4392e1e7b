"""cache_attention as its definition. Shape letters: B, H, G, Q, N, L, D as in the package's __init__."""

from __future__ import annotations

import torch
from torch import Tensor

from feedworks_kernels.summary_decode.eager import move, write

__all__ = ["cache_attention", "move", "write"]


def cache_attention(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """Softmax over the rows of the slice, one query row at a time. As `feedworks_kernels.cache_attention`."""
    num_slots, num_groups, num_rows, _ = key_NGLD.shape
    kind = torch.promote_types(query_BHQD.dtype, torch.float32)
    out_BHQD = torch.zeros_like(query_BHQD, memory_format=torch.contiguous_format)
    group = query_BHQD.shape[1] // num_groups
    for b, slot in enumerate(slot_B.tolist()):
        for q, (start, stop) in enumerate(zip(start_BQ[b].tolist(), stop_BQ[b].tolist(), strict=True)):
            if not 0 <= slot < num_slots or start < 0 or stop > num_rows:
                out_BHQD[b, :, q] = torch.nan
            elif start < stop:
                key_HLD, value_HLD = (
                    cache[slot, :, start:stop].repeat_interleave(group, dim=0).to(kind)
                    for cache in (key_NGLD, value_NGLD)
                )
                weight_HL = torch.einsum("hd,hld->hl", query_BHQD[b, :, q].to(kind), key_HLD) * scale
                mixed_HD = torch.einsum("hl,hld->hd", weight_HL.softmax(dim=1), value_HLD)
                out_BHQD[b, :, q] = mixed_HD.to(out_BHQD.dtype)
    return out_BHQD
