"""What cache_attention accepts: one ValueError that names the argument, what it is, and what was expected.

Shape letters: B, H, G, Q, N, L, D as in the package's __init__.
"""

from __future__ import annotations

import torch
from torch import Tensor, bfloat16, float16, float32, float64, int32, int64

FLOATS = (float32, float16, bfloat16, float64)


def check(
    query_BHQD: Tensor,
    caches: tuple[Tensor, Tensor],
    slices: tuple[Tensor, Tensor],
    slot_B: Tensor | None,
) -> None:
    """Refuse shapes, types and devices that do not fit.

    Args:
        query_BHQD: queries.
        caches: keys and values (N, G, L, D).
        slices: start and stop (B, Q).
        slot_B: which of N each sequence reads, or None where N is B.

    Raises:
        ValueError: as `cache_attention`.
    """
    if query_BHQD.ndim != 4 or query_BHQD.dtype not in FLOATS or not query_BHQD.shape[3]:
        raise ValueError(f"query: expected float (B, H, Q, D) with D of 1 or more, got {what(query_BHQD)}")
    num_batch, num_heads, num_queries, width = query_BHQD.shape
    for name, cache in zip(("key", "value"), caches, strict=True):
        if cache.ndim != 4 or cache.shape[3] != width or cache.dtype != query_BHQD.dtype:
            raise ValueError(
                f"{name}: expected {query_BHQD.dtype} (N, G, L, {width}) like query, got {what(cache)}"
            )
        same_device(name, cache, query_BHQD)
    if caches[0].shape != caches[1].shape:
        raise ValueError(f"value: expected the shape of key, {shape(caches[0])}, got {shape(caches[1])}")
    num_groups = caches[0].shape[1]
    if not num_groups or num_heads % num_groups:
        raise ValueError(f"query has {num_heads} heads: expected a multiple of key's {num_groups}")
    for name, bound in zip(("start", "stop"), slices, strict=True):
        if bound.dtype not in (int32, int64) or tuple(bound.shape) != (num_batch, num_queries):
            raise ValueError(
                f"{name}: expected int32 or int64 (B, Q) = {(num_batch, num_queries)}, got {what(bound)}"
            )
        same_device(name, bound, query_BHQD)
    _check_slot(slot_B, caches[0].shape[0], query_BHQD)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query_BHQD, *caches)):
        raise ValueError("cache_attention has no gradient: call it under torch.no_grad()")


def _check_slot(slot_B: Tensor | None, num_slots: int, query_BHQD: Tensor) -> None:
    num_batch = query_BHQD.shape[0]
    if slot_B is None:
        if num_slots != num_batch:
            raise ValueError(
                f"key holds {num_slots} sequences and query {num_batch}: without slot they must agree"
            )
        return
    if slot_B.dtype not in (int32, int64) or tuple(slot_B.shape) != (num_batch,):
        raise ValueError(f"slot: expected int32 or int64 (B,) = ({num_batch},), got {what(slot_B)}")
    same_device("slot", slot_B, query_BHQD)


def check_slices(start_BQ: Tensor, stop_BQ: Tensor, slot_B: Tensor, num_slots: int, num_rows: int) -> None:
    """Refuse slices and slots that lie outside the cache; on a GPU, where looking costs a wait, do nothing.

    Raises:
        ValueError: there is one.
    """
    if start_BQ.device.type != "cpu":
        return
    outside_BQ = (start_BQ < 0) | (stop_BQ > num_rows)
    if outside_BQ.any():
        b, q = (int(i) for i in outside_BQ.nonzero()[0])
        raise ValueError(
            f"query [{b}, {q}] reads rows {int(start_BQ[b, q])} .. {int(stop_BQ[b, q])}: "
            f"expected a part of 0 .. {num_rows}"
        )
    check_slots(slot_B, num_slots)


def check_slots(slot_B: Tensor, num_slots: int) -> None:
    """Refuse slots that are not there; looks at the values.

    Raises:
        ValueError: there is one.
    """
    outside_B = (slot_B < 0) | (slot_B >= num_slots)
    if outside_B.any():
        b = int(outside_B.int().argmax())
        raise ValueError(f"slot[{b}] = {int(slot_B[b])}: expected 0 .. {num_slots - 1}")


def same_device(name: str, tensor: Tensor, other: Tensor) -> None:
    """Raise ValueError where two tensors lie on different devices."""
    if tensor.device != other.device:
        raise ValueError(f"{name} lies on {tensor.device} and query on {other.device}: move one of them")


def shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape as a plain tuple."""
    return tuple(tensor.shape)


def what(tensor: Tensor) -> str:
    """Return type and shape, for a message."""
    return f"{tensor.dtype} {shape(tensor)}"
