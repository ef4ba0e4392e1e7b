"""New rows into the cache, and the rows of an ended chunk to their place, in one launch each.

Shape letters: B sequences, G key and value heads, N slots, L rows of a slot, D head width, Q = 1 + m new
rows, P = m + k rows that may move.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from feedworks_kernels._device import on
from feedworks_kernels.summary_decode.tiles_kernel import INDICES, OPTIONS


@triton.jit(do_not_specialize_on_alignment=INDICES)
def write_kernel(
    key_ptr,
    value_ptr,
    new_key_ptr,
    new_value_ptr,
    slot_ptr,
    write_ptr,
    key_slot_stride,
    key_head_stride,
    value_slot_stride,
    value_head_stride,
    KEY_STRIDE: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    GROUPS: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The new rows of one key head of one sequence."""
    b, g = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    d_D = tl.arange(0, BLOCK_D)
    slot = tl.load(slot_ptr + b).to(tl.int64)
    key_ptr += slot * key_slot_stride + g.to(tl.int64) * key_head_stride
    value_ptr += slot * value_slot_stride + g.to(tl.int64) * value_head_stride
    source = tl.program_id(0).to(tl.int64) * QUERIES
    for i in tl.static_range(QUERIES):
        row = tl.load(write_ptr + b * QUERIES + i).to(tl.int64)
        key_D = tl.load(new_key_ptr + (source + i) * D + d_D, mask=d_D < D)
        value_D = tl.load(new_value_ptr + (source + i) * D + d_D, mask=d_D < D)
        tl.store(key_ptr + row * KEY_STRIDE + d_D, key_D, mask=d_D < D)
        tl.store(value_ptr + row * VALUE_STRIDE + d_D, value_D, mask=d_D < D)


@triton.jit(do_not_specialize_on_alignment=INDICES)
def move_kernel(
    key_ptr,
    value_ptr,
    slot_ptr,
    move_ptr,
    key_slot_stride,
    key_head_stride,
    value_slot_stride,
    value_head_stride,
    KEY_STRIDE: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Scratch and chunk of one key head of one sequence; rows that stay are neither read nor written."""
    b, g = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    p_P, d_D = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
    slot = tl.load(slot_ptr + b).to(tl.int64)
    key_ptr += slot * key_slot_stride + g.to(tl.int64) * key_head_stride
    value_ptr += slot * value_slot_stride + g.to(tl.int64) * value_head_stride
    to_P = tl.load(move_ptr + b * ROWS + p_P, mask=p_P < ROWS, other=0).to(tl.int64)
    moves_PD = ((p_P < ROWS) & (to_P != p_P))[:, None] & (d_D < D)[None, :]
    key_PD = tl.load(key_ptr + p_P[:, None] * KEY_STRIDE + d_D[None, :], mask=moves_PD)
    value_PD = tl.load(value_ptr + p_P[:, None] * VALUE_STRIDE + d_D[None, :], mask=moves_PD)
    # No row is the target of one move and the source of another.
    tl.store(key_ptr + to_P[:, None] * KEY_STRIDE + d_D[None, :], key_PD, mask=moves_PD)
    tl.store(value_ptr + to_P[:, None] * VALUE_STRIDE + d_D[None, :], value_PD, mask=moves_PD)


def write(
    key_NGLD: Tensor,
    value_NGLD: Tensor,
    new_key_BGQD: Tensor,
    new_value_BGQD: Tensor,
    slot_B: Tensor,
    write_BQ: Tensor,
) -> None:
    """One launch. As `eager.write`."""
    num_batch, num_groups, num_new, width = new_key_BGQD.shape
    if not num_batch:
        return
    with on(key_NGLD):
        write_kernel[(num_batch * num_groups,)](
            key_NGLD,
            value_NGLD,
            new_key_BGQD.contiguous(),
            new_value_BGQD.contiguous(),
            slot_B,
            write_BQ.contiguous(),
            *key_NGLD.stride()[:2],
            *value_NGLD.stride()[:2],
            KEY_STRIDE=key_NGLD.stride(2),
            VALUE_STRIDE=value_NGLD.stride(2),
            GROUPS=num_groups,
            QUERIES=num_new,
            D=width,
            BLOCK_D=triton.next_power_of_2(width),
            num_warps=1,
            **OPTIONS,
        )


def move(key_NGLD: Tensor, value_NGLD: Tensor, slot_B: Tensor, move_BP: Tensor) -> None:
    """One launch. As `eager.move`."""
    num_batch, num_rows = move_BP.shape
    _, num_groups, _, width = key_NGLD.shape
    if not num_batch:
        return
    with on(key_NGLD):
        move_kernel[(num_batch * num_groups,)](
            key_NGLD,
            value_NGLD,
            slot_B,
            move_BP.contiguous(),
            *key_NGLD.stride()[:2],
            *value_NGLD.stride()[:2],
            KEY_STRIDE=key_NGLD.stride(2),
            VALUE_STRIDE=value_NGLD.stride(2),
            GROUPS=num_groups,
            ROWS=num_rows,
            D=width,
            BLOCK_P=triton.next_power_of_2(num_rows),
            BLOCK_D=triton.next_power_of_2(width),
            num_warps=4,
            **OPTIONS,
        )
