"""residual_quantize and product_quantize as operators of torch, which export and compile keep as one node.

Each has one body for all devices (the form is chosen inside) and shapes for tracing. They have no gradient.

Shape letters: N vectors, D width, L levels, C codes per level or book, M books.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from feedworks_kernels._dispatch import implementation

_OP = "residual_quantize"
_FAR = 1e16


def residual_codes(x_ND: Tensor, codebooks_LCD: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """Run the form that belongs to the device. Arguments and result as `residual_quantize`."""
    codes_NL, residual_ND = implementation(_OP, x_ND.device)(x_ND, codebooks_LCD, normalise)
    _refuse_odd(residual_ND, codebooks_LCD, x_ND if normalise else None)
    return codes_NL, residual_ND


def product_codes(x_NMD: Tensor, codebooks_MCD: Tensor) -> tuple[Tensor, Tensor]:
    """Run the form that belongs to the device. Arguments and result as `product_quantize`."""
    codes_NM, residual_NMD = implementation(_OP, x_NMD.device, "product_quantize")(x_NMD, codebooks_MCD)
    _refuse_odd(residual_NMD, codebooks_MCD)
    return codes_NM, residual_NMD


def _refuse_odd(residual: Tensor, codebooks: Tensor, scaled_ND: Tensor | None = None) -> None:
    """Refuse NaN and inf, which the residual keeps of what took part, and numbers whose squares leave fp32.

    Args:
        residual: what is left of the vectors, as large as they were unless they were scaled.
        codebooks: the codes.
        scaled_ND: the vectors, where they were scaled to unit length.
    """
    if residual.is_cuda:
        return
    most = _largest(residual)
    if not most < torch.inf:
        row = int((~residual.isfinite()).flatten(1).any(dim=1).int().argmax())
        raise ValueError(f"x row {row} or the codebooks hold NaN or inf: expected finite values")
    if residual.dtype == torch.float64:
        return
    found = {"codebooks": _largest(codebooks), "x": most if scaled_ND is None else _largest(scaled_ND)}
    for name, most in found.items():
        if most > _FAR:
            raise ValueError(f"{name}: expected numbers of at most 1e16, for squares in fp32, got {most:.3g}")


def _largest(tensor: Tensor) -> float:
    """Return the largest absolute value; NaN if there is one, 0 of nothing."""
    if not tensor.numel():
        return 0.0
    low, high = (float(bound) for bound in torch.aminmax(tensor))
    return max(-low, high)


residual_quantize = library.custom_op(
    "feedworks::residual_quantize",
    residual_codes,
    mutates_args=(),
    schema="(Tensor x, Tensor codebooks, bool normalise) -> (Tensor, Tensor)",
)
product_quantize = library.custom_op(
    "feedworks::product_quantize",
    product_codes,
    mutates_args=(),
    schema="(Tensor x, Tensor codebooks) -> (Tensor, Tensor)",
)


@residual_quantize.register_fake
def _(x, codebooks, normalise):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    codes_NL = x.new_empty(x.shape[0], codebooks.shape[0], dtype=torch.int64)
    return codes_NL, x.new_empty(x.shape, dtype=_work(x))


@product_quantize.register_fake
def _(x, codebooks):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return x.new_empty(x.shape[:2], dtype=torch.int64), x.new_empty(x.shape, dtype=_work(x))


def _work(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
