"""oneDNN's fp32 product on a CPU: on a Zen 5 core twice the rate of torch.mm (MKL), 200 against 97 GFLOP/s.

`torch.ops.mkldnn._linear_pointwise` is the operator that torch's compiler emits; it has no gradient. A weight
that stays can be laid out once (`packed`): a few rows then take 0.7 of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 512  # for which the layout is chosen; from 8 on it is the same


def can_multiply(tensor: Tensor) -> bool:
    """Whether products with this tensor can go to oneDNN, in this build of torch."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        return False
    mkldnn = torch.backends.mkldnn
    on = bool(mkldnn.is_available() and mkldnn.enabled)  # type: ignore[no-untyped-call]
    return on and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    activation: str = "none",
    algorithm: str = "",
) -> Tensor:
    """Return activation(x W^T + bias), (..., N).

    Args:
        x_MK: rows, (..., K).
        weight_NK: as it is, or `packed`.
        bias_N: optional.
        activation: by oneDNN's name.
        algorithm: of the activation, where it has several.
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, activation, [], algorithm)
    return result


def packed(weight_NK: Tensor) -> Tensor:
    """Return the weight in the layout of `linear`; it is for that alone and cannot be read otherwise."""
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_NK.contiguous(), _ROWS)
    return result
