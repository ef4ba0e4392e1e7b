"""cache_attention in Triton: the slice of each sequence is cut into parts, and the parts' results are merged.

Shape letters: B sequences, H query heads, G key and value heads, Q query rows per sequence, N slots, L rows
of a slot, D head width, S parts; R query heads of a group in one program, T rows of the cache in a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from feedworks_kernels._device import gpu_of, on
from feedworks_kernels.summary_decode import eager
from feedworks_kernels.summary_decode.tiles_kernel import INDICES, INTERPRETED, OPTIONS
from feedworks_kernels.summary_decode.update_kernel import move, write

__all__ = ["cache_attention", "move", "write"]

_WIDEST = 256  # of a head: wider ones go to PyTorch
_MOST_ROWS = 2**30  # of a slot: places within a slot are 32-bit numbers
_LOG2_E = 1.4426950408889634


class Tile(NamedTuple):
    """How a program works: rows per tile, warps, and tiles in flight."""

    rows: int
    num_warps: int
    num_stages: int


@triton.jit(do_not_specialize=["num_rows", "num_slots", "parts"], do_not_specialize_on_alignment=INDICES)
def part_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    start_ptr,
    stop_ptr,
    slot_ptr,
    out_ptr,
    lse_ptr,
    scale,
    num_rows,
    num_slots,
    parts,
    key_slot_stride,
    key_head_stride,
    value_slot_stride,
    value_head_stride,
    KEY_STRIDE: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    SEVERAL: tl.constexpr,
    D: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One part of the slice of one query row, for the query heads that share a key head.

    The slice is read once, in order, without a mask but for its last tile. Parts are equal shares of the
    slice as it is, not of the capacity; a part without rows writes a log-sum-exp of minus infinity,
    one of a slice that is not there plus infinity.
    """
    blocks: tl.constexpr = (GROUP + BLOCK_R - 1) // BLOCK_R
    part = tl.program_id(0) % parts
    block = tl.program_id(0) // parts % blocks
    q = tl.program_id(0) // parts // blocks % QUERIES
    bg = tl.program_id(0) // parts // (blocks * QUERIES)
    b = bg // (HEADS // GROUP)
    g = bg % (HEADS // GROUP)
    slot = tl.load(slot_ptr + b).to(tl.int64)
    first = tl.load(start_ptr + b * QUERIES + q).to(tl.int64)
    last = tl.load(stop_ptr + b * QUERIES + q).to(tl.int64)
    bad = (first < 0) | (last > num_rows) | (slot < 0) | (slot >= num_slots)
    # Nothing is read for a bad row.
    first = tl.where(bad, 0, tl.minimum(first, num_rows)).to(tl.int32)
    last = tl.where(bad, 0, tl.maximum(last, 0)).to(tl.int32)
    share = tl.cdiv(tl.maximum(last - first, 0), parts * BLOCK_T) * BLOCK_T
    begin = first + part * share
    end = tl.minimum(last, begin + share)

    in_group_R = block * BLOCK_R + tl.arange(0, BLOCK_R)
    live_R = in_group_R < GROUP
    row_R = ((b * HEADS + g * GROUP + in_group_R) * QUERIES + q).to(tl.int64)
    d_D = tl.arange(0, BLOCK_D)
    t_T = tl.arange(0, BLOCK_T)
    live_RD = live_R[:, None] & (d_D < D)[None, :]
    query_RD = tl.load(query_ptr + row_R[:, None] * D + d_D[None, :], mask=live_RD, other=0.0)
    if UPCAST:
        query_RD = query_RD.to(tl.float32)
    slot = tl.where(bad, 0, slot)
    key_ptr += slot * key_slot_stride + g.to(tl.int64) * key_head_stride + begin.to(tl.int64) * KEY_STRIDE
    value_ptr += slot * value_slot_stride + g.to(tl.int64) * value_head_stride
    value_ptr += begin.to(tl.int64) * VALUE_STRIDE
    key_ptrs = key_ptr + t_T.to(tl.int64)[:, None] * KEY_STRIDE + d_D[None, :]
    value_ptrs = value_ptr + t_T.to(tl.int64)[:, None] * VALUE_STRIDE + d_D[None, :]

    top_R = tl.full((BLOCK_R,), -float("inf"), dtype=tl.float32)
    total_R = tl.zeros((BLOCK_R,), dtype=tl.float32)
    mixed_RD = tl.zeros((BLOCK_R, BLOCK_D), dtype=tl.float32)
    for t in tl.range(begin, end, BLOCK_T, num_stages=STAGES):
        inside_T = t_T < end - t
        inside_TD = inside_T[:, None] & (d_D < D)[None, :]
        key_TD = tl.load(key_ptrs, mask=inside_TD, other=0.0)
        value_TD = tl.load(value_ptrs, mask=inside_TD, other=0.0)
        if UPCAST:
            key_TD = key_TD.to(tl.float32)
            value_TD = value_TD.to(tl.float32)
        score_RT = tl.dot(query_RD, tl.trans(key_TD), input_precision="ieee") * scale
        score_RT = tl.where(inside_T[None, :], score_RT, -float("inf"))
        before_R = top_R
        top_R = tl.maximum(top_R, tl.max(score_RT, axis=1))
        weight_RT = tl.exp2(score_RT - top_R[:, None])
        shrink_R = tl.exp2(before_R - top_R)
        total_R = total_R * shrink_R + tl.sum(weight_RT, axis=1)
        mixed_RD *= shrink_R[:, None]
        mixed_RD = tl.dot(weight_RT.to(value_TD.dtype), value_TD, mixed_RD, input_precision="ieee")
        key_ptrs += BLOCK_T * KEY_STRIDE
        value_ptrs += BLOCK_T * VALUE_STRIDE

    total_R = tl.where(total_R == 0, 1.0, total_R)  # nothing is read: 0, and a log-sum-exp of minus infinity
    mixed_RD /= total_R[:, None]
    if not SEVERAL:
        mixed_RD = tl.where(bad, float("nan"), mixed_RD)
        out_ptrs = out_ptr + row_R[:, None] * D + d_D[None, :]
        tl.store(out_ptrs, mixed_RD.to(out_ptr.dtype.element_ty), mask=live_RD)
    else:
        lse_R = tl.where(bad, float("inf"), top_R + tl.log2(total_R))
        tl.store(lse_ptr + row_R * parts + part, lse_R, mask=live_R)
        if begin < end:
            out_ptrs = out_ptr + (row_R[:, None] * parts + part) * D + d_D[None, :]
            tl.store(out_ptrs, mixed_RD, mask=live_RD)


@triton.jit(do_not_specialize=["parts"])
def merge_kernel(
    part_ptr,
    lse_ptr,
    out_ptr,
    parts,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The parts of one query row of one head, weighted by their share of the softmax's sum."""
    row = tl.program_id(0).to(tl.int64)
    s_S = tl.arange(0, BLOCK_S)
    d_D = tl.arange(0, BLOCK_D)
    lse_S = tl.load(lse_ptr + row * parts + s_S, mask=s_S < parts, other=-float("inf"))
    top = tl.max(lse_S, axis=0)
    bad = top == float("inf")
    lse_S = tl.where(bad, -float("inf"), lse_S)
    weight_S = tl.exp2(lse_S - tl.where(bad | (top == -float("inf")), 0.0, top))
    total = tl.sum(weight_S, axis=0)
    weight_S /= tl.where(total == 0, 1.0, total)
    # A part without rows wrote nothing.
    written_SD = (lse_S > -float("inf"))[:, None] & (d_D < D)[None, :]
    part_ptrs = part_ptr + (row * parts + s_S)[:, None] * D + d_D[None, :]
    part_SD = tl.load(part_ptrs, mask=written_SD, other=0.0)
    mixed_D = tl.sum(part_SD * weight_S[:, None], axis=0)
    mixed_D = tl.where(bad, float("nan"), mixed_D)
    tl.store(out_ptr + row * D + d_D, mixed_D.to(out_ptr.dtype.element_ty), mask=d_D < D)


def cache_attention(
    query_BHQD: Tensor,
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    start_BQ: Tensor,
    stop_BQ: Tensor,
    slot_B: Tensor,
    scale: float,
) -> Tensor:
    """One launch, and a small one where slices are cut. As `feedworks_kernels.cache_attention`.

    Raises:
        RuntimeError: tensors on a CPU outside of Triton's interpreter.
    """
    num_batch, num_heads, num_queries, width = query_BHQD.shape
    num_slots, num_groups, num_rows, _ = key_NGLD.shape
    if query_BHQD.dtype == torch.float64 or width > _WIDEST or num_rows > _MOST_ROWS:
        return eager.cache_attention(query_BHQD, key_NGLD, value_NGLD, start_BQ, stop_BQ, slot_B, scale)
    query_BHQD, out_BHQD = query_BHQD.contiguous(), query_BHQD.new_empty(query_BHQD.shape)
    if not out_BHQD.numel():
        return out_BHQD
    key_NGLD, value_NGLD = (x if x.stride(3) == 1 else x.contiguous() for x in (key_NGLD, value_NGLD))
    with on(query_BHQD):
        group, tile = num_heads // num_groups, tile_for(query_BHQD.dtype, width)
        block_heads = min(64, max(16, triton.next_power_of_2(group)))
        programs = num_batch * num_groups * num_queries * triton.cdiv(group, block_heads)
        parts = num_parts(num_batch * num_groups, num_rows, gpu_of(query_BHQD.device).processors)
        part_BHQSD, lse_BHQS = _parts_of(out_BHQD, parts)
        part_kernel[(programs * parts,)](
            query_BHQD,
            key_NGLD,
            value_NGLD,
            start_BQ.contiguous(),
            stop_BQ.contiguous(),
            slot_B.contiguous(),
            part_BHQSD,
            lse_BHQS,
            scale * _LOG2_E,
            num_rows,
            num_slots,
            parts,
            *key_NGLD.stride()[:2],
            *value_NGLD.stride()[:2],
            KEY_STRIDE=key_NGLD.stride(2),
            VALUE_STRIDE=value_NGLD.stride(2),
            HEADS=num_heads,
            GROUP=group,
            QUERIES=num_queries,
            SEVERAL=parts > 1,
            D=width,
            UPCAST=INTERPRETED,
            BLOCK_R=block_heads,
            BLOCK_T=tile.rows,
            BLOCK_D=max(16, triton.next_power_of_2(width)),
            STAGES=tile.num_stages,
            num_warps=tile.num_warps,
            **OPTIONS,
        )
        if parts > 1:
            _merge(part_BHQSD, lse_BHQS, out_BHQD)
    return out_BHQD


def _parts_of(out_BHQD: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Where the parts' results go: one part's into the output itself, which has no log-sum-exp."""
    if parts == 1:
        return out_BHQD, out_BHQD
    *rows, width = out_BHQD.shape
    return (
        out_BHQD.new_empty(*rows, parts, width, dtype=torch.float32),
        out_BHQD.new_empty(*rows, parts, dtype=torch.float32),
    )


def _merge(part_BHQSD: Tensor, lse_BHQS: Tensor, out_BHQD: Tensor) -> None:
    *_, parts, width = part_BHQSD.shape
    merge_kernel[(out_BHQD.shape[:3].numel(),)](
        part_BHQSD,
        lse_BHQS,
        out_BHQD,
        parts,
        D=width,
        BLOCK_S=max(2, triton.next_power_of_2(parts)),
        BLOCK_D=max(16, triton.next_power_of_2(width)),
        num_warps=4,
        **OPTIONS,
    )


def tile_for(dtype: torch.dtype, width: int) -> Tile:
    """Return the tile for a type and a head width: 16 KB of keys and as many of values in a stage."""
    row_bytes = dtype.itemsize * max(16, triton.next_power_of_2(width))
    return Tile(rows=min(128, max(16, (16 << 10) // row_bytes)), num_warps=4, num_stages=3)


# Programs have 96 KB in flight, two run on an SM: four rounds of them, so that none waits long for the last.
# A part of 128 rows reads 64 KB (bf16, D 128) and writes 2 KB of partial sums for a group of 4 heads.
_PROGRAMS_PER_PROCESSOR, _LEAST_ROWS, _MOST_PARTS = 8, 128, 64


def num_parts(num_pairs: int, num_rows: int, processors: int) -> int:
    """Return how many parts a slice is cut into, from sizes that the host knows: nothing waits for lengths.

    Args:
        num_pairs: B x G: programs without a cut.
        num_rows: L, rows of a slot, whether used or not.
        processors: SMs of the device.
    """
    wanted = -(-_PROGRAMS_PER_PROCESSOR * processors // num_pairs)
    return max(1, min(wanted, num_rows // _LEAST_ROWS, _MOST_PARTS))
