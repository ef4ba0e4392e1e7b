"""Residual quantisation: a vector becomes one code per level. Maths and measurements: README.md here.

Shape letters: N vectors, D width, L levels, C codes per level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels._dispatch import implementation


class ResidualCodes(NamedTuple):
    """Codes of each vector, first level first, and what the last level left over."""

    codes_NL: Tensor
    residual_ND: Tensor


def residual_quantize(x_ND: Tensor, codebooks_LCD: Tensor, *, normalise: bool = False) -> ResidualCodes:
    """Choose the nearest code of every level in turn, each time subtracting it from the vector.

    Level l takes the code with the least squared distance to the current residual (the lowest number on a
    tie), then r <- r - codebook[l, code]. No gradient flows.

    Args:
        x_ND: float vectors. fp64 is computed in fp64, any other float in fp32 (products included, whatever
            precision is set for matrix products).
        codebooks_LCD: float codebooks, same device as `x_ND`.
        normalise: scale the residual to unit length before each level (a zero residual stays zero).

    Returns:
        ResidualCodes: codes in int64 and the residual after the last level in the type of the computation. In
        fp32 a code equals that of an exact computation wherever the second-nearest code is farther than the
        nearest by more than 1e-5 * (|r| + |c|)^2 in squared distance.

    Raises:
        ValueError: shapes, types or devices do not fit, there is no level, no code or no dimension, or
            (except on CUDA, where looking costs a wait) `x_ND` or the codebooks hold NaN or inf.

    Source: arXiv 2604.25787 section 3 (RQ-Kmeans); residual normalisation as in arXiv 2507.22224 (GRID).
    """
    _check(x_ND, codebooks_LCD)
    work = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        run = implementation("residual_quantize", x_ND.device)
        result = ResidualCodes(*run(x_ND.to(work), codebooks_LCD.to(work), normalise))
        if not x_ND.is_cuda:
            _refuse_nan(result.residual_ND)
    return result


def _check(x_ND: Tensor, codebooks_LCD: Tensor) -> None:
    if x_ND.ndim != 2 or not x_ND.is_floating_point():
        raise ValueError(f"x: expected float (N, D), got {x_ND.dtype} {tuple(x_ND.shape)}")
    if codebooks_LCD.ndim != 3 or not codebooks_LCD.is_floating_point():
        raise ValueError(
            f"codebooks: expected float (L, C, D), got {codebooks_LCD.dtype} {tuple(codebooks_LCD.shape)}"
        )
    if codebooks_LCD.shape[2] != x_ND.shape[1]:
        raise ValueError(f"widths differ: x has D={x_ND.shape[1]}, codebooks have D={codebooks_LCD.shape[2]}")
    if codebooks_LCD.numel() == 0:
        raise ValueError(f"codebooks: expected L, C, D >= 1, got {tuple(codebooks_LCD.shape)}")
    if x_ND.device != codebooks_LCD.device:
        raise ValueError(f"x lies on {x_ND.device} and codebooks on {codebooks_LCD.device}: move one of them")


def _refuse_nan(residual_ND: Tensor) -> None:
    """Any NaN or inf that took part is left in the residual. The sum, a quick look, may itself overflow."""
    if not residual_ND.sum().isfinite() and not residual_ND.isfinite().all():
        row = int((~residual_ND.isfinite()).any(dim=1).int().argmax())
        raise ValueError(f"x row {row} or the codebooks hold NaN or inf: expected finite values")
