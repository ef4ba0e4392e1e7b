"""What user_item_linear accepts: one ValueError that names the argument, what it is, and what was expected.

Shape letters: B rows (candidates), R requests, U user width, I item width, N outputs.
"""

from __future__ import annotations

from torch import Tensor, bfloat16, float16, float32, float64, int32, int64

ACTIVATIONS = ("none", "relu", "sigmoid", "silu", "gelu")
"""gelu is the exact one, by erf."""


def check(
    user: Tensor,
    item_BI: Tensor,
    weight_item_NI: Tensor,
    request_B: Tensor | None,
    activation: str,
    layer: tuple[Tensor, Tensor | None] | None = None,
) -> None:
    """Refuse what does not fit.

    Args:
        user: (R, U), or (R, N) partial sums where there is no `layer`.
        item_BI: rows.
        weight_item_NI: the item's columns of the weight.
        request_B: request of each row, or None.
        activation: a name.
        layer: the user's columns of the weight (N, U) and the bias (N,) or None.

    Raises:
        ValueError: as `user_item_linear`.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if item_BI.ndim != 2 or item_BI.dtype not in (float32, float16, bfloat16, float64):
        raise ValueError(f"item: expected float (B, I), got {_what(item_BI)}")
    num_outputs = weight_item_NI.shape[0] if weight_item_NI.ndim else 0
    _matrix("weight_item", weight_item_NI, ("N", num_outputs), ("I", item_BI.shape[1]), item_BI)
    if layer is None:
        if user.ndim != 2 or user.shape[1] != num_outputs or user.dtype not in (item_BI.dtype, float32):
            types = " or ".join(dict.fromkeys([str(item_BI.dtype), "torch.float32"]))
            raise ValueError(f"partial: expected {types} (R, {num_outputs}), got {_what(user)}")
        _same_device("partial", user, item_BI)
    else:
        if user.ndim != 2 or user.dtype != item_BI.dtype:
            raise ValueError(f"user: expected {item_BI.dtype} (R, U) like item, got {_what(user)}")
        _same_device("user", user, item_BI)
        _matrix("weight_user", layer[0], ("N", num_outputs), ("U", user.shape[1]), item_BI)
        bias_N = layer[1]
        if bias_N is not None:
            if bias_N.ndim != 1 or bias_N.shape[0] != num_outputs or bias_N.dtype != item_BI.dtype:
                raise ValueError(f"bias: expected {item_BI.dtype} ({num_outputs},), got {_what(bias_N)}")
            _same_device("bias", bias_N, item_BI)
    _check_request(request_B, user, item_BI)


def _check_request(request_B: Tensor | None, user: Tensor, item_BI: Tensor) -> None:
    if request_B is None:
        if user.shape[0] != 1:
            raise ValueError(
                f"request: {user.shape[0]} user rows need the row of each candidate; without it give 1"
            )
        return
    if request_B.ndim != 1 or request_B.dtype not in (int32, int64) or request_B.shape[0] != item_BI.shape[0]:
        raise ValueError(
            f"request: expected int32 or int64 ({item_BI.shape[0]},), one per row of item, "
            f"got {_what(request_B)}"
        )
    _same_device("request", request_B, item_BI)


def name_bad_request(request_B: Tensor | None, num_requests: int) -> None:
    """After an index error: say which row asked for a request that is not there.

    Raises:
        ValueError: there is one; on CUDA nothing is looked at.
    """
    if request_B is None or request_B.is_cuda or not request_B.numel():
        return
    outside_B = (request_B < 0) | (request_B >= num_requests)
    if outside_B.any():
        row = int(outside_B.int().argmax())
        raise ValueError(f"request[{row}] = {int(request_B[row])}: expected 0 .. {num_requests - 1}")


def _matrix(name: str, weight: Tensor, rows: tuple[str, int], columns: tuple[str, int], item: Tensor) -> None:
    shape = (rows[1], columns[1])
    if weight.ndim != 2 or tuple(weight.shape) != shape or weight.dtype != item.dtype:
        raise ValueError(
            f"{name}: expected {item.dtype} ({rows[0]}, {columns[0]}) = {shape}, got {_what(weight)}"
        )
    _same_device(name, weight, item)


def _same_device(name: str, tensor: Tensor, item: Tensor) -> None:
    if tensor.device != item.device:
        raise ValueError(f"{name} lies on {tensor.device} and item on {item.device}: move one of them")


def _what(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
