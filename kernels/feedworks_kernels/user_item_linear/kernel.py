"""user_item_linear in Triton: the item's product, with partial sum and activation as its epilogue.

Shape letters: B rows (candidates), R requests, U user width, I item width, N outputs; T tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from feedworks_kernels._device import on
from feedworks_kernels.user_item_linear import eager, registration
from feedworks_kernels.user_item_linear.gradient_kernel import gradient
from feedworks_kernels.user_item_linear.tiles_kernel import (
    INTERPRETED,
    OPTIONS,
    activate,
    bucket,
    fitting,
    item_tile,
    partial_tile,
    precision,
    rows_in_line,
    tile_configs,
)

__all__ = ["gradient", "user_item_linear", "user_product"]

# Up to this many requests each reads the whole weight of the user, from the L2 cache but for the first.
_FEW_REQUESTS = 4


@triton.autotune(
    configs=tile_configs(),
    key=["tuned_rows", "N", "I", "SEVERAL", "ACTIVATION", "PRECISION"],
    prune_configs_by={"early_config_prune": fitting},
)
@triton.jit(do_not_specialize=["num_rows", "num_requests", "tuned_rows"])
def forward_kernel(
    item_ptr,
    weight_ptr,
    partial_ptr,
    request_ptr,
    out_ptr,
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
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the output per program; tiles of the same rows run side by side and share them in L2."""
    blocks_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    block_b = tl.program_id(0) // blocks_n
    block_n = tl.program_id(0) % blocks_n
    sum_TT = item_tile(
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
    row_T = block_b * BLOCK_B + tl.arange(0, BLOCK_B)
    column_T = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    sum_TT += partial_tile(
        partial_ptr, request_ptr, row_T, column_T, num_rows, num_requests, PARTIAL_STRIDE, N, SEVERAL
    )
    out_ptrs = out_ptr + row_T.to(tl.int64)[:, None] * N + column_T[None, :]
    inside_TT = (row_T < num_rows)[:, None] & (column_T < N)[None, :]
    tl.store(out_ptrs, activate(sum_TT, ACTIVATION).to(out_ptr.dtype.element_ty), mask=inside_TT)


@triton.jit
def user_kernel(
    user_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    N: tl.constexpr,
    U: tl.constexpr,
    USER_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """A few outputs of one request per program: the weight streams through once, 16 KB in flight on an SM."""
    column_T = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    user_ptr += tl.program_id(1).to(tl.int64) * USER_STRIDE
    u_T = tl.arange(0, BLOCK_U)
    weight_ptrs = (
        weight_ptr + tl.minimum(column_T, N - 1).to(tl.int64)[:, None] * WEIGHT_STRIDE + u_T[None, :]
    )
    sum_TT = tl.zeros((BLOCK_N, BLOCK_U), dtype=tl.float32)
    for u in range(0, U, BLOCK_U):
        user_T = tl.load(user_ptr + u + u_T, mask=u_T < U - u, other=0.0)
        weight_TT = tl.load(weight_ptrs + u, mask=(u_T < U - u)[None, :], other=0.0)
        sum_TT += weight_TT.to(tl.float32) * user_T.to(tl.float32)[None, :]
    sum_T = tl.sum(sum_TT, axis=1)
    if HAS_BIAS:
        sum_T += tl.load(bias_ptr + column_T, mask=column_T < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + tl.program_id(1) * N + column_T, sum_T, mask=column_T < N)


def user_item_linear(
    partial_RN: Tensor, item_BI: Tensor, weight_item_NI: Tensor, request_B: Tensor | None, activation: str
) -> Tensor:
    """One launch for product, partial sum and activation. As `feedworks_kernels.user_partial_linear`."""
    if item_BI.dtype == torch.float64:
        return eager.user_item_linear(partial_RN, item_BI, weight_item_NI, request_B, activation)
    if _needs_gradient(partial_RN, item_BI, weight_item_NI):
        out_BN: Tensor = registration.user_partial_linear(
            partial_RN, item_BI, weight_item_NI, request_B, activation
        )
        return out_BN
    num_rows, num_outputs = item_BI.shape[0], weight_item_NI.shape[0]
    out_BN = item_BI.new_empty(num_rows, num_outputs)
    if not out_BN.numel():
        return out_BN
    item_BI, weight_item_NI, partial_RN = (rows_in_line(x) for x in (item_BI, weight_item_NI, partial_RN))
    request_B = None if request_B is None else request_B.contiguous()
    with on(item_BI):
        forward_kernel[
            lambda tile: (triton.cdiv(num_rows, tile["BLOCK_B"]) * triton.cdiv(num_outputs, tile["BLOCK_N"]),)
        ](
            item_BI,
            weight_item_NI,
            partial_RN,
            request_B,
            out_BN,
            num_rows,
            partial_RN.shape[0],
            bucket(num_rows),
            N=num_outputs,
            I=item_BI.shape[1],
            ITEM_STRIDE=item_BI.stride(0),
            WEIGHT_STRIDE=weight_item_NI.stride(0),
            PARTIAL_STRIDE=partial_RN.stride(0),
            SEVERAL=request_B is not None,
            ACTIVATION=activation,
            PRECISION=precision(item_BI.dtype),
            UPCAST=INTERPRETED,
            **OPTIONS,
        )
    return out_BN


def user_product(user_RU: Tensor, weight_user_NU: Tensor, bias_N: Tensor | None) -> Tensor:
    """Return the user's partial sums (R, N), in fp32 where no gradient is asked for."""
    few = user_RU.shape[0] <= _FEW_REQUESTS
    floats = user_RU, weight_user_NU, *(() if bias_N is None else (bias_N,))
    if user_RU.dtype == torch.float64 or not few or _needs_gradient(*floats):
        return _library_product(user_RU, weight_user_NU, bias_N)
    num_requests, num_outputs = user_RU.shape[0], weight_user_NU.shape[0]
    partial_RN = torch.empty(num_requests, num_outputs, dtype=torch.float32, device=user_RU.device)
    if not partial_RN.numel():
        return partial_RN
    user_RU, weight_user_NU = rows_in_line(user_RU), rows_in_line(weight_user_NU)
    with on(user_RU):
        user_kernel[(triton.cdiv(num_outputs, 4), num_requests)](
            user_RU,
            weight_user_NU,
            bias_N,
            partial_RN,
            N=num_outputs,
            U=user_RU.shape[1],
            USER_STRIDE=user_RU.stride(0),
            WEIGHT_STRIDE=weight_user_NU.stride(0),
            HAS_BIAS=bias_N is not None,
            BLOCK_N=4,
            BLOCK_U=min(2048, max(64, triton.next_power_of_2(user_RU.shape[1]))),
            num_warps=8 if user_RU.shape[1] > 512 else 2,
            **OPTIONS,
        )
    return partial_RN


def _library_product(user_RU: Tensor, weight_user_NU: Tensor, bias_N: Tensor | None) -> Tensor:
    """CuBLAS splits the sum over U where rows are few."""
    floats = user_RU, weight_user_NU, *(() if bias_N is None else (bias_N,))
    if user_RU.dtype not in (torch.float16, torch.bfloat16) or _needs_gradient(*floats):
        return F.linear(user_RU, weight_user_NU, bias_N)
    if user_RU.is_cuda:
        partial_RN = torch.mm(user_RU, weight_user_NU.T, out_dtype=torch.float32)
    else:
        partial_RN = user_RU.float() @ weight_user_NU.float().T
    return partial_RN if bias_N is None else partial_RN.add_(bias_N)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
