"""The gradient of user_item_linear in Triton: before the activation, and added up over each request's rows.

What remains are plain products (with the weight, with the rows), which cuBLAS does best.

Shape letters: B rows (candidates), R requests, I item width, N outputs; T tile, P programs along the rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from feedworks_kernels._device import on
from feedworks_kernels.user_item_linear import eager
from feedworks_kernels.user_item_linear.tiles_kernel import (
    INTERPRETED,
    OPTIONS,
    bucket,
    fitting,
    item_tile,
    partial_tile,
    precision,
    rows_in_line,
    tile_configs,
)

_RECOMPUTES = ("silu", "gelu")


@triton.jit
def derivative(x, ACTIVATION: tl.constexpr):
    """Return the derivative: at the sum before it for silu and gelu, from the output for relu and sigmoid."""
    if ACTIVATION == "relu":
        slope = tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == "sigmoid":
        slope = x * (1 - x)
    elif ACTIVATION == "silu":
        sigmoid = 1 / (1 + tl.exp(-x))
        slope = sigmoid * (1 + x * (1 - sigmoid))
    else:
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        slope = 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * density
    return slope


@triton.jit
def add_by_request(
    grad_TT, request_ptr, row_T, column_T, grad_partial_ptr, num_rows, num_requests, N: tl.constexpr
):
    """Add the rows of a tile to their requests.

    Rows of a request lie side by side as a rule: then one atomic row of each request, else one of each row.
    """
    request_T = tl.load(request_ptr + row_T, mask=row_T < num_rows, other=-1)
    exists_T = (request_T >= 0) & (request_T < num_requests)
    request_T = tl.where(exists_T, request_T, -1).to(tl.int32)
    inside_T = column_T < N
    first = tl.min(tl.where(exists_T, request_T, num_requests), axis=0)
    last = tl.max(tl.where(exists_T, request_T, -1), axis=0)
    if last - first < 8:
        request = first
        while request <= last:  # older interpreters of Triton cannot count up to a number of a kernel
            mine_T = exists_T & (request_T == request)
            sum_T = tl.sum(tl.where(mine_T[:, None], grad_TT, 0.0), axis=0)
            tl.atomic_add(grad_partial_ptr + request.to(tl.int64) * N + column_T, sum_T, mask=inside_T)
            request += 1
    else:
        tl.atomic_add(
            grad_partial_ptr + request_T.to(tl.int64)[:, None] * N + column_T[None, :],
            grad_TT,
            mask=exists_T[:, None] & inside_T[None, :],
        )


@triton.autotune(
    configs=tile_configs(),
    key=["tuned_rows", "N", "I", "SEVERAL", "ACTIVATION", "PRECISION"],
    prune_configs_by={"early_config_prune": fitting},
    reset_to_zero=["grad_partial_ptr"],
)
@triton.jit(do_not_specialize=["num_rows", "num_requests", "tuned_rows"])
def gradient_kernel(
    item_ptr,
    weight_ptr,
    partial_ptr,
    request_ptr,
    grad_ptr,
    out_ptr,
    grad_mixed_ptr,
    grad_partial_ptr,
    num_rows,
    num_requests,
    tuned_rows,
    N: tl.constexpr,
    I: tl.constexpr,
    ITEM_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    PARTIAL_STRIDE: tl.constexpr,
    SEVERAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RECOMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile per program: grad * act', stored and added up over the rows of each request."""
    blocks_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    block_b = tl.program_id(0) // blocks_n
    block_n = tl.program_id(0) % blocks_n
    row_T = block_b * BLOCK_B + tl.arange(0, BLOCK_B)
    column_T = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    place_TT = row_T.to(tl.int64)[:, None] * N + column_T[None, :]
    inside_TT = (row_T < num_rows)[:, None] & (column_T < N)[None, :]
    if RECOMPUTE:
        x_TT = item_tile(
            item_ptr,
            weight_ptr,
            block_b,
            block_n,
            num_rows,
            N,
            I,
            ITEM_STRIDE,
            WEIGHT_STRIDE,
            PRECISION,
            UPCAST,
            BLOCK_B,
            BLOCK_N,
            BLOCK_K,
        )
        x_TT += partial_tile(
            partial_ptr, request_ptr, row_T, column_T, num_rows, num_requests, PARTIAL_STRIDE, N, SEVERAL
        )
    elif ACTIVATION != "none":
        x_TT = tl.load(out_ptr + place_TT, mask=inside_TT, other=0.0).to(tl.float32)
    grad_TT = tl.load(grad_ptr + place_TT, mask=inside_TT, other=0.0).to(tl.float32)
    if ACTIVATION != "none":
        grad_TT *= derivative(x_TT, ACTIVATION)
        tl.store(grad_mixed_ptr + place_TT, grad_TT.to(grad_mixed_ptr.dtype.element_ty), mask=inside_TT)
    if SEVERAL:
        add_by_request(grad_TT, request_ptr, row_T, column_T, grad_partial_ptr, num_rows, num_requests, N)
    else:
        kept_TT = tl.where(inside_TT, grad_TT, 0.0)
        tl.store(grad_partial_ptr + block_b * N + column_T, tl.sum(kept_TT, axis=0), mask=column_T < N)


def gradient(
    grad_BN: Tensor,
    out_BN: Tensor | None,
    partial_RN: Tensor,
    item_BI: Tensor,
    weight_item_NI: Tensor,
    request_B: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Gradients as of `reference.gradient`; the first is `grad_BN` itself where there is no activation.

    The sums of several requests are added by atomics, in any order, except under
    `torch.use_deterministic_algorithms`, which takes the PyTorch form.
    """
    ordered = request_B is not None and torch.are_deterministic_algorithms_enabled()
    if item_BI.dtype == torch.float64 or ordered or not grad_BN.numel():
        return eager.gradient(grad_BN, out_BN, partial_RN, item_BI, weight_item_NI, request_B, activation)
    (num_rows, num_outputs), several = grad_BN.shape, request_B is not None
    item_BI, weight_item_NI, partial_RN = (rows_in_line(x) for x in (item_BI, weight_item_NI, partial_RN))
    grad_mixed_BN = grad_BN if activation == "none" else torch.empty_like(grad_BN)
    # One request: a row of sums for each program along the rows (16 rows at least), added up in order below.
    sums = (partial_RN.shape[0] if several else triton.cdiv(num_rows, 16), num_outputs)
    grad_PN = torch.zeros(sums, dtype=torch.float32, device=grad_BN.device)
    with on(grad_BN):
        gradient_kernel[
            lambda tile: (triton.cdiv(num_rows, tile["BLOCK_B"]) * triton.cdiv(num_outputs, tile["BLOCK_N"]),)
        ](
            item_BI,
            weight_item_NI,
            partial_RN,
            None if request_B is None else request_B.contiguous(),
            grad_BN,
            out_BN,
            grad_mixed_BN,
            grad_PN,
            num_rows,
            partial_RN.shape[0],
            bucket(num_rows),
            N=num_outputs,
            I=item_BI.shape[1],
            ITEM_STRIDE=item_BI.stride(0),
            WEIGHT_STRIDE=weight_item_NI.stride(0),
            PARTIAL_STRIDE=partial_RN.stride(0),
            SEVERAL=several,
            ACTIVATION=activation,
            RECOMPUTE=activation in _RECOMPUTES,
            PRECISION=precision(item_BI.dtype),
            UPCAST=INTERPRETED,
            **OPTIONS,
        )
    grad_RN = grad_PN if several else grad_PN.sum(dim=0, keepdim=True)
    return grad_mixed_BN, grad_RN.to(partial_RN.dtype)
