"""cache_attention: each query row reads one contiguous slice of one sequence's cache.

Shape letters: B sequences, H query heads, G key and value heads (H / G query heads share one), Q query rows
per sequence, N slots of the cache, L rows of a slot, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feedworks_kernels.summary_decode import registration
from feedworks_kernels.summary_decode.checks import check, check_slices


def cache_attention(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    *,
    slot_B: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute softmax(scale q k^T) v over the rows start .. stop - 1 of a sequence's slot, per query row.

    Query head h reads key head h // (H / G). No gradient. While torch exports or compiles, this is one node,
    `feedworks::cache_attention`; whoever loads such a program imports `feedworks_kernels` before.

    Args:
        query_BHQD: fp32, fp16, bf16 or (PyTorch forms) fp64.
        key_NGLD: keys, in the type of `query_BHQD`. Rows outside the slices may hold anything.
        value_NGLD: values.
        start_BQ: int32 or int64, first row that a query reads.
        stop_BQ: int32 or int64, the row after its last one; start >= stop is nothing.
        slot_B: int32 or int64, which of the N slots each sequence reads; without it N is B, in order.
        scale: factor of the products; without it D ** -0.5.

    Returns:
        out_BHQD in the type of `query_BHQD`; sums are kept in fp32 at least. A row that reads nothing is 0.

    Raises:
        ValueError: shapes, types, devices or head counts do not fit, a gradient is asked for, or a slice or
            slot lies outside the cache (on CUDA, where looking costs a wait, the row is NaN instead).

    Source: arXiv 2604.24432 (decoding); split over keys as in Flash-Decoding.
    """
    check(query_BHQD, (key_NGLD, value_NGLD), (start_BQ, stop_BQ), slot_B)
    if slot_B is None:
        slot_B = torch.arange(query_BHQD.shape[0], device=query_BHQD.device)
    if scale is None:
        scale = query_BHQD.shape[3] ** -0.5
    if not torch.compiler.is_compiling():
        check_slices(start_BQ, stop_BQ, slot_B, key_NGLD.shape[0], key_NGLD.shape[2])
    return registration.attend(query_BHQD, (key_NGLD, value_NGLD), (start_BQ, stop_BQ), slot_B, scale)
