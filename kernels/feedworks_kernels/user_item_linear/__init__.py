"""A linear layer over a user's and a candidate's numbers, the user's part computed once per request.

Maths and measurements: README.md here. Shape letters: B rows (candidates), R requests, U user width, I item
width, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feedworks_kernels._dispatch import implementation
from feedworks_kernels.user_item_linear import registration
from feedworks_kernels.user_item_linear.checks import ACTIVATIONS, check, name_bad_request

__all__ = ["ACTIVATIONS", "user_item_linear", "user_partial_linear"]


def user_item_linear(
    user_RU: Tensor,
    item_BI: Tensor,
    weight_user_NU: Tensor,
    weight_item_NI: Tensor,
    bias_N: Tensor | None = None,
    request_B: Tensor | None = None,
    *,
    activation: str = "none",
) -> Tensor:
    """Compute act(item Wi^T + (user Wu^T + bias)[request]), equal to act([user[request], item] W^T + bias).

    Differentiable in every float argument. While torch exports or compiles, this is one node,
    `feedworks::user_item_linear`; whoever loads such a program imports `feedworks_kernels` before.

    Args:
        user_RU: one row per request. All floats are of one type: fp32, fp16, bf16 or (PyTorch forms) fp64.
        item_BI: one row per candidate.
        weight_user_NU: columns of the layer's weight that met the user.
        weight_item_NI: its other columns.
        bias_N: the layer's bias.
        request_B: int32 or int64, row of `user_RU` that belongs to each candidate; without it R is 1.
        activation: one of `ACTIVATIONS`.

    Returns:
        out_BN in the type of `item_BI`; sums are kept in fp32 at least.

    Raises:
        ValueError: shapes, types or devices do not fit, the activation is unknown, or a request is not in
            0 .. R - 1 (on CUDA, where looking costs a wait, the row is NaN instead).

    Source: arXiv 2602.23105 section 3 (matrix re-parameterised inference).
    """
    check(user_RU, item_BI, weight_item_NI, request_B, activation, (weight_user_NU, bias_N))
    if torch.compiler.is_compiling():
        out_BN: Tensor = registration.user_item_linear(
            user_RU, item_BI, weight_user_NU, weight_item_NI, bias_N, request_B, activation
        )
        return out_BN
    product = implementation("user_item_linear", item_BI.device, "user_product")
    return _run(product(user_RU, weight_user_NU, bias_N), item_BI, weight_item_NI, request_B, activation)


def user_partial_linear(
    partial_RN: Tensor,
    item_BI: Tensor,
    weight_item_NI: Tensor,
    request_B: Tensor | None = None,
    *,
    activation: str = "none",
    trusted: bool = False,
) -> Tensor:
    """Compute act(item Wi^T + partial[request]): several layers can share one product with the user.

    Args:
        partial_RN: user Wu^T + bias, in the type of `item_BI` or in fp32; may be a slice of a wider product.
        item_BI: one row per candidate; fp32, fp16, bf16 or (PyTorch forms) fp64.
        weight_item_NI: the item's columns of the weight, in the type of `item_BI`.
        request_B: int32 or int64, row of `partial_RN` that belongs to each candidate; without it R is 1.
        activation: one of `ACTIVATIONS`.
        trusted: the arguments come from a traced graph; checking them takes longer than a small product.

    Returns:
        out_BN in the type of `item_BI`; sums are kept in fp32 at least.

    Raises:
        ValueError: as `user_item_linear`.
    """
    if not trusted:
        check(partial_RN, item_BI, weight_item_NI, request_B, activation)
    if torch.compiler.is_compiling():
        out_BN: Tensor = registration.user_partial_linear(
            partial_RN, item_BI, weight_item_NI, request_B, activation
        )
        return out_BN
    return _run(partial_RN, item_BI, weight_item_NI, request_B, activation)


def _run(
    partial_RN: Tensor, item_BI: Tensor, weight_item_NI: Tensor, request_B: Tensor | None, activation: str
) -> Tensor:
    run = implementation("user_item_linear", item_BI.device)
    try:
        out_BN: Tensor = run(partial_RN, item_BI, weight_item_NI, request_B, activation)
    except (IndexError, RuntimeError):
        name_bad_request(request_B, partial_RN.shape[0])
        raise
    return out_BN
