"""What the Triton kernels of user_item_linear share: one tile of the item's product, activations, tile sizes.

Widths and strides belong to the model, so they are compile-time constants: the compiler sees their divisors,
drops masks and loads 128 bits where it may. Numbers of rows and requests change with every call.

Shape letters: B rows (candidates), R requests, I item width, N outputs; T tile.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# In the interpreter bf16 arithmetic is silently wrong, so operands go up to fp32 right after each load; and
# there is nothing to tune.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_SHARED_BYTES = 227 << 10  # of a Hopper SM, for one program
# Sums that a thread may hold so that nothing spills (tests compile and look); the gradient, and operands of 4
# bytes, have other uses for registers too.
_SUMS_PER_THREAD, _SUMS_BESIDE_MORE = 64, 32
# What both kernels hand to the compiler: Triton warns where fusing a * b + c is left to its default.
OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def item_tile(
    item_ptr,
    weight_ptr,
    block_b,
    block_n,
    num_rows,
    N: tl.constexpr,
    I: tl.constexpr,
    ITEM_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """fp32 sums of one tile of item Wi^T. Rows and columns past the end repeat the last: no mask."""
    row_T = tl.minimum(tl.arange(0, BLOCK_B), num_rows - 1 - block_b * BLOCK_B)
    column_T = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - block_n * BLOCK_N)
    k_T = tl.arange(0, BLOCK_K)
    # The tile's start in 64 bits, places within the tile in 32.
    item_ptrs = item_ptr + block_b.to(tl.int64) * (BLOCK_B * ITEM_STRIDE)
    item_ptrs += row_T[:, None] * ITEM_STRIDE + k_T[None, :]
    weight_ptrs = weight_ptr + block_n.to(tl.int64) * (BLOCK_N * WEIGHT_STRIDE)
    weight_ptrs += column_T[None, :] * WEIGHT_STRIDE + k_T[:, None]
    sum_TT = tl.zeros((BLOCK_B, BLOCK_N), dtype=tl.float32)
    for k in range(0, I, BLOCK_K):
        if I % BLOCK_K == 0:
            item_TT = tl.load(item_ptrs)
            weight_TT = tl.load(weight_ptrs)
        else:
            item_TT = tl.load(item_ptrs, mask=k_T[None, :] < I - k, other=0.0)
            weight_TT = tl.load(weight_ptrs, mask=k_T[:, None] < I - k, other=0.0)
        if UPCAST:
            item_TT = item_TT.to(tl.float32)
            weight_TT = weight_TT.to(tl.float32)
        sum_TT = tl.dot(item_TT, weight_TT, sum_TT, input_precision=PRECISION)
        item_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    return sum_TT


@triton.jit
def partial_tile(
    partial_ptr,
    request_ptr,
    row_T,
    column_T,
    num_rows,
    num_requests,
    PARTIAL_STRIDE: tl.constexpr,
    N: tl.constexpr,
    SEVERAL: tl.constexpr,
):
    """Partial sums of the tile's rows, fp32. A request that does not exist gives NaN and reads nothing."""
    inside_T = column_T < N
    if SEVERAL:
        request_T = tl.load(request_ptr + row_T, mask=row_T < num_rows, other=0).to(tl.int64)
        exists_T = (request_T >= 0) & (request_T < num_requests)
        partial_TT = tl.load(
            partial_ptr + request_T[:, None] * PARTIAL_STRIDE + column_T[None, :],
            mask=exists_T[:, None] & inside_T[None, :],
            other=float("nan"),
        )
    else:
        partial_TT = tl.load(partial_ptr + column_T, mask=inside_T, other=0.0)[None, :]
    return partial_TT.to(tl.float32)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Apply the activation in fp32. A NaN stays one."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "sigmoid":
        x = 1 / (1 + tl.exp(-x))
    elif ACTIVATION == "silu":
        x = x / (1 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    return x


def tile_configs(interpreted: bool = INTERPRETED) -> list[triton.Config]:
    """Return the tile sizes to try, (rows, columns, depth, warps, stages); the best is kept per shape."""
    sizes = [
        (128, 128, 64, 8, 4),
        (128, 64, 64, 8, 4),
        (64, 128, 64, 8, 4),
        (64, 64, 64, 4, 5),
        (64, 64, 128, 4, 3),
        (64, 32, 64, 4, 5),
        (16, 64, 128, 4, 4),
        (32, 32, 32, 4, 4),
    ]
    if interpreted:
        sizes = [(64, 64, 64, 4, 1)]
    return [
        triton.Config({"BLOCK_B": b, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
        for b, n, k, warps, stages in sizes
    ]


def fitting(configs: list[triton.Config], placed: Mapping[str, Any], **named: Any) -> list[triton.Config]:
    """Leave out tiles too large for shared memory or registers, or twice as large as the result."""
    arguments = {**placed, **named}
    size = arguments["item_ptr"].element_size()
    more = size == 4 or "grad_ptr" in arguments
    most = _SUMS_BESIDE_MORE if more else _SUMS_PER_THREAD
    rows, outputs = max(arguments["num_rows"], 16), max(arguments["N"], 32)

    def fits(config: triton.Config) -> bool:
        tile = config.kwargs
        stage = (tile["BLOCK_B"] + tile["BLOCK_N"]) * tile["BLOCK_K"] * size
        small = tile["BLOCK_B"] < 2 * rows and tile["BLOCK_N"] < 2 * outputs
        sums = tile["BLOCK_B"] * tile["BLOCK_N"] // (32 * config.num_warps)
        return bool(small and sums <= most and stage * config.num_stages <= _SHARED_BYTES)

    return [config for config in configs if fits(config)] or configs[-1:]


def bucket(num_rows: int) -> int:
    """Return the power of 2 that tuning knows a number of rows by."""
    return triton.next_power_of_2(max(num_rows, 16))  # type: ignore[no-any-return]


def rows_in_line(x: Tensor) -> Tensor:
    """Return `x` with the numbers of a row side by side; rows may lie apart."""
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()


def precision(dtype: torch.dtype) -> str:
    """Return what fp32 products may round to: the setting of torch, full precision unless it says TF32."""
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"
