"""user_item_linear in PyTorch operators: the partial sum is the product's bias, or is added to it in place.

Shape letters: B rows (candidates), R requests, U user width, I item width, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from feedworks_kernels import onednn
from feedworks_kernels.user_item_linear.reference import activate

__all__ = ["gradient", "user_item_linear", "user_product"]

# oneDNN's fp32 product takes half of addmm's (MKL's) time on a Zen 5 core, but its call 10 us more. They are
# equal at 2 million operations with one thread and 4 million with two.
_MANY_FLOP = 2_000_000
_ONEDNN_NAME = {"none": "none", "relu": "relu", "sigmoid": "sigmoid", "silu": "swish", "gelu": "gelu"}


def user_item_linear(
    partial_RN: Tensor, item_BI: Tensor, weight_item_NI: Tensor, request_B: Tensor | None, activation: str
) -> Tensor:
    """One product with the partial sum as its bias. As `feedworks_kernels.user_partial_linear`."""
    if partial_RN.dtype != item_BI.dtype:
        partial_RN = partial_RN.to(item_BI.dtype)
    if torch.is_grad_enabled() and (
        partial_RN.requires_grad or item_BI.requires_grad or weight_item_NI.requires_grad
    ):
        bias = partial_RN[0] if request_B is None else partial_RN.index_select(0, request_B)
        return activate(torch.addmm(bias, item_BI, weight_item_NI.T), activation)
    if request_B is None:
        if _prefers_onednn(item_BI, weight_item_NI):
            return _onednn(item_BI, weight_item_NI, partial_RN[0], activation)
        return _activate_in_place(torch.addmm(partial_RN[0], item_BI, weight_item_NI.T), activation)
    if _prefers_onednn(item_BI, weight_item_NI):
        mixed_BN = _onednn(item_BI, weight_item_NI, None, "none")
        mixed_BN += partial_RN.index_select(0, request_B)
    else:
        mixed_BN = partial_RN.index_select(0, request_B).addmm_(item_BI, weight_item_NI.T)
    return _activate_in_place(mixed_BN, activation)


def user_product(user_RU: Tensor, weight_user_NU: Tensor, bias_N: Tensor | None) -> Tensor:
    """Return the user's partial sums (R, N), one row per request, with the bias."""
    graph = torch.is_grad_enabled() and (
        user_RU.requires_grad or weight_user_NU.requires_grad or (bias_N is not None and bias_N.requires_grad)
    )
    # A single row is a matrix times a vector: it waits for memory, whatever the library.
    if not graph and user_RU.shape[0] > 1 and _prefers_onednn(user_RU, weight_user_NU):
        return _onednn(user_RU, weight_user_NU, bias_N, "none")
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
    """Gradients as of `reference.gradient`; the first is `grad_BN` itself where there is no activation."""
    if activation == "none":
        grad_mixed_BN = grad_BN
    elif out_BN is not None:
        grad_mixed_BN = _gradient_from_output(grad_BN, out_BN, activation)
    else:
        mixed_BN = user_item_linear(partial_RN, item_BI, weight_item_NI, request_B, "none")
        backward = torch.ops.aten.silu_backward if activation == "silu" else torch.ops.aten.gelu_backward
        grad_mixed_BN = backward(grad_BN, mixed_BN)
    whole = torch.float64 if grad_BN.dtype == torch.float64 else torch.float32
    if request_B is None:
        grad_RN = grad_mixed_BN.sum(dim=0, keepdim=True, dtype=whole)
    else:
        grad_RN = torch.zeros(partial_RN.shape, dtype=whole, device=grad_BN.device)
        grad_RN.index_add_(0, request_B, grad_mixed_BN.to(whole))
    return grad_mixed_BN, grad_RN.to(partial_RN.dtype)


def _gradient_from_output(grad_BN: Tensor, out_BN: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        result: Tensor = torch.ops.aten.threshold_backward(grad_BN, out_BN, 0)
    else:
        result = torch.ops.aten.sigmoid_backward(grad_BN, out_BN)
    return result


def _activate_in_place(mixed_BN: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return mixed_BN
    if activation == "gelu":
        gelu: Tensor = torch.ops.aten.gelu_(mixed_BN)
        return gelu
    if activation == "silu":
        return F.silu(mixed_BN, inplace=True)
    return mixed_BN.relu_() if activation == "relu" else mixed_BN.sigmoid_()


def _prefers_onednn(item_BI: Tensor, weight_item_NI: Tensor) -> bool:
    return 2 * item_BI.numel() * weight_item_NI.shape[
        0
    ] >= _MANY_FLOP * torch.get_num_threads() and onednn.can_multiply(item_BI)


def _onednn(item_BI: Tensor, weight_item_NI: Tensor, bias_N: Tensor | None, activation: str) -> Tensor:
    name, algorithm = _ONEDNN_NAME[activation], "none" if activation == "gelu" else ""
    return onednn.linear(item_BI, weight_item_NI, bias_N, name, algorithm)
