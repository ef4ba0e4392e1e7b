"""user_item_linear as operators of torch, which torch.export and torch.compile keep as one node.

Each has one body for all devices (the form is chosen inside), shapes for tracing, and a gradient that is not
differentiable again.

Shape letters: B rows (candidates), R requests, U user width, I item width, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from feedworks_kernels._dispatch import implementation

# Their derivative is a function of the output. For the others the sum before the activation is computed
# again: on an H100 that takes less time than writing and reading it up to I = 530 (README.md).
KEEPS_OUTPUT = ("relu", "sigmoid")
_OP = "user_item_linear"
_NAME = "feedworks::user_item_linear"
_PARTIAL = "feedworks::user_partial_linear"
_GRADIENT = "feedworks::user_partial_linear_gradient"


def _forward(
    user_RU: Tensor,
    item_BI: Tensor,
    weight_user_NU: Tensor,
    weight_item_NI: Tensor,
    bias_N: Tensor | None,
    request_B: Tensor | None,
    activation: str,
) -> Tensor:
    partial_RN = _product(user_RU, weight_user_NU, bias_N)
    return _forward_partial(partial_RN, item_BI, weight_item_NI, request_B, activation)


def _forward_partial(
    partial_RN: Tensor, item_BI: Tensor, weight_item_NI: Tensor, request_B: Tensor | None, activation: str
) -> Tensor:
    with torch.no_grad():
        run = implementation(_OP, item_BI.device)
        out_BN: Tensor = run(partial_RN, item_BI, weight_item_NI, request_B, activation)
    return out_BN


def _gradient(
    grad_BN: Tensor,
    out_BN: Tensor | None,
    partial_RN: Tensor,
    item_BI: Tensor,
    weight_item_NI: Tensor,
    request_B: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        run = implementation(_OP, item_BI.device, "gradient")
        grad_mixed_BN, grad_RN = run(
            grad_BN.contiguous(), out_BN, partial_RN, item_BI, weight_item_NI, request_B, activation
        )
    # An operator may not return its argument: nothing stands for "the same as grad_BN".
    return (grad_BN.new_empty(0, 0) if activation == "none" else grad_mixed_BN), grad_RN


def _product(user_RU: Tensor, weight_user_NU: Tensor, bias_N: Tensor | None) -> Tensor:
    with torch.no_grad():
        product: Tensor = implementation(_OP, user_RU.device, "user_product")(user_RU, weight_user_NU, bias_N)
    return product


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.activation = inputs[-1]
    out_BN = output if ctx.activation in KEEPS_OUTPUT else None
    ctx.save_for_backward(*inputs[:-1], out_BN)


def _backward_partial(ctx: Any, grad_BN: Tensor) -> tuple[Tensor | None, ...]:
    partial_RN, item_BI, weight_item_NI, request_B, out_BN = ctx.saved_tensors
    grad_mixed_BN, grad_RN = user_partial_linear_gradient(
        grad_BN, out_BN, partial_RN, item_BI, weight_item_NI, request_B, ctx.activation
    )
    if ctx.activation == "none":
        grad_mixed_BN = grad_BN
    needs = ctx.needs_input_grad
    return (
        grad_RN if needs[0] else None,
        grad_mixed_BN @ weight_item_NI if needs[1] else None,
        grad_mixed_BN.T @ item_BI if needs[2] else None,
        None,
        None,
    )


def _backward(ctx: Any, grad_BN: Tensor) -> tuple[Tensor | None, ...]:
    user_RU, item_BI, weight_user_NU, weight_item_NI, bias_N, request_B, out_BN = ctx.saved_tensors
    partial_RN = torch.nn.functional.linear(user_RU, weight_user_NU, bias_N)
    grad_mixed_BN, grad_RN = user_partial_linear_gradient(
        grad_BN, out_BN, partial_RN, item_BI, weight_item_NI, request_B, ctx.activation
    )
    if ctx.activation == "none":
        grad_mixed_BN = grad_BN
    needs = ctx.needs_input_grad
    return (
        grad_RN @ weight_user_NU if needs[0] else None,
        grad_mixed_BN @ weight_item_NI if needs[1] else None,
        grad_RN.T @ user_RU if needs[2] else None,
        grad_mixed_BN.T @ item_BI if needs[3] else None,
        grad_RN.sum(dim=0) if needs[4] else None,
        None,
        None,
    )


user_item_linear = library.custom_op(
    _NAME,
    _forward,
    mutates_args=(),
    schema="(Tensor user, Tensor item, Tensor weight_user, Tensor weight_item, Tensor? bias, "
    "Tensor? request, str activation) -> Tensor",
)
user_partial_linear = library.custom_op(
    _PARTIAL,
    _forward_partial,
    mutates_args=(),
    schema="(Tensor partial, Tensor item, Tensor weight_item, Tensor? request, str activation) -> Tensor",
)
user_partial_linear_gradient = library.custom_op(
    _GRADIENT,
    _gradient,
    mutates_args=(),
    schema="(Tensor grad, Tensor? out, Tensor partial, Tensor item, Tensor weight_item, Tensor? request, "
    "str activation) -> (Tensor, Tensor)",
)


@user_item_linear.register_fake
def _(user, item, weight_user, weight_item, bias, request, activation):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return item.new_empty(item.shape[0], weight_item.shape[0])


@user_partial_linear.register_fake
def _(partial, item, weight_item, request, activation):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return item.new_empty(item.shape[0], weight_item.shape[0])


@user_partial_linear_gradient.register_fake
def _(grad, out, partial, item, weight_item, request, activation):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    shape = (0, 0) if activation == "none" else grad.shape
    return grad.new_empty(shape), torch.empty_like(partial)


user_item_linear.register_autograd(_backward, setup_context=_keep)
user_partial_linear.register_autograd(_backward_partial, setup_context=_keep)
