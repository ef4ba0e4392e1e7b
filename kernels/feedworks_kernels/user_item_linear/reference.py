"""user_item_linear by its definition. The other forms are tested on it.

Shape letters: B rows (candidates), R requests, U user width, I item width, N outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def user_item_linear(
    partial_RN: Tensor, item_BI: Tensor, weight_item_NI: Tensor, request_B: Tensor | None, activation: str
) -> Tensor:
    """Add to every row's product its request's partial sum. As `feedworks_kernels.user_partial_linear`."""
    product_BN = item_BI @ weight_item_NI.T
    if request_B is None:
        mixed_BN = product_BN + partial_RN.to(item_BI.dtype)
    else:
        mixed_BN = product_BN + partial_RN.to(item_BI.dtype).index_select(0, request_B)
    return activate(mixed_BN, activation)


def activate(mixed_BN: Tensor, activation: str) -> Tensor:
    """Apply the activation, number by number."""
    if activation == "none":
        return mixed_BN
    if activation == "relu":
        return torch.relu(mixed_BN)
    if activation == "sigmoid":
        return torch.sigmoid(mixed_BN)
    return F.silu(mixed_BN) if activation == "silu" else F.gelu(mixed_BN)


def user_product(user_RU: Tensor, weight_user_NU: Tensor, bias_N: Tensor | None) -> Tensor:
    """Return the user's partial sums (R, N), one row per request, with the bias."""
    return F.linear(user_RU, weight_user_NU, bias_N)


def gradient(
    grad_BN: Tensor,
    out_BN: Tensor | None,
    partial_RN: Tensor,
    item_BI: Tensor,
    weight_item_NI: Tensor,
    request_B: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the sum before the activation and of the user's partial sums.

    Args:
        grad_BN: gradient of the output.
        out_BN: the output, where `KEEPS_OUTPUT` has the activation; the others compute the sum again.
        partial_RN: as in the forward pass, and so on.
        item_BI: rows.
        weight_item_NI: weight.
        request_B: request of each row.
        activation: its name.

    Returns:
        (B, N) in the rows' type and (R, N) in the partial sums' type.
    """
    whole = torch.float64 if item_BI.dtype == torch.float64 else torch.float32
    product_BN = item_BI.to(whole) @ weight_item_NI.to(whole).T
    request_B = (
        torch.zeros(len(item_BI), dtype=torch.int64, device=item_BI.device)
        if request_B is None
        else request_B
    )
    mixed_BN = product_BN + partial_RN.to(whole).index_select(0, request_B)
    grad_mixed_BN = grad_BN.to(whole) * derivative(mixed_BN, activation)
    grad_RN = torch.zeros(partial_RN.shape, dtype=whole, device=grad_BN.device)
    grad_RN.index_add_(0, request_B, grad_mixed_BN)
    return grad_mixed_BN.to(item_BI.dtype), grad_RN.to(partial_RN.dtype)


def derivative(mixed_BN: Tensor, activation: str) -> Tensor:
    """Return the activation's derivative at every number."""
    sigmoid_BN = torch.sigmoid(mixed_BN)
    if activation == "none":
        return torch.ones_like(mixed_BN)
    if activation == "relu":
        return (mixed_BN > 0).to(mixed_BN.dtype)
    if activation == "sigmoid":
        return sigmoid_BN * (1 - sigmoid_BN)
    if activation == "silu":
        return sigmoid_BN * (1 + mixed_BN * (1 - sigmoid_BN))
    density_BN = torch.exp(-mixed_BN.square() / 2) / math.sqrt(2 * math.pi)
    slope_BN: Tensor = torch.special.ndtr(mixed_BN) + mixed_BN * density_BN
    return slope_BN
