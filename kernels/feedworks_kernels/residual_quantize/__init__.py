"""A vector becomes codes: one per level of its residual, or one per subspace. Maths, measurements: README.md.

Shape letters: N vectors, D width, L levels, C codes per level or book, M books.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels.residual_quantize import registration


class ResidualCodes(NamedTuple):
    """Codes of each vector, first level first, and what the last level left over."""

    codes_NL: Tensor
    residual_ND: Tensor


class ProductCodes(NamedTuple):
    """Code of each part of each vector, and what it left over: the part itself minus its code's vector."""

    codes_NM: Tensor
    residual_NMD: Tensor


def residual_quantize(x_ND: Tensor, codebooks_LCD: Tensor, *, normalise: bool = False) -> ResidualCodes:
    """Choose the nearest code of every level in turn, each time subtracting it from the vector.

    Level l takes the code with the least squared distance to the current residual (the lowest number on a
    tie), then r <- r - codebook[l, code]. No gradient flows. While torch exports or compiles, this is one
    node, `feedworks::residual_quantize`; whoever loads such a program imports `feedworks_kernels` before.

    Args:
        x_ND: float vectors. fp64 is computed in fp64, any other float in fp32 (products included, whatever
            precision is set for matrix products).
        codebooks_LCD: float codebooks, same device as `x_ND`.
        normalise: scale the residual to unit length before each level (a zero residual stays zero).

    Returns:
        ResidualCodes: codes in int64 and the residual after the last level in the type of the computation. In
        fp32 a code equals that of an exact computation wherever the second-nearest code is farther than the
        nearest by more than 1e-5 * (|r| + |c|)^2 in squared distance, and that by more than 1e-30.

    Raises:
        ValueError: shapes, types or devices do not fit, there is no level, no code or no dimension, or
            (except on CUDA, where looking costs a wait) `x_ND` or the codebooks hold NaN, inf or, in fp32,
            numbers beyond 1e16.

    Source: arXiv 2604.25787 section 3 (RQ-Kmeans); residual normalisation as in arXiv 2507.22224 (GRID).
    """
    _check(x_ND, codebooks_LCD, "N, D", "L, C, D")
    form = registration.residual_quantize if torch.compiler.is_compiling() else registration.residual_codes
    with torch.no_grad():
        return ResidualCodes(*form(x_ND, codebooks_LCD, normalise))


def product_quantize(x_NMD: Tensor, codebooks_MCD: Tensor) -> ProductCodes:
    """Choose the nearest code of every part of a vector in that part's own book.

    One book is plain vector quantisation. No gradient flows; `x_NMD - residual_NMD` is the quantised vector,
    for a straight-through estimator. While torch exports or compiles, this is one node,
    `feedworks::product_quantize`.

    Args:
        x_NMD: float parts, such as a projection to M * D cut into M; any strides. fp64 is computed in fp64,
            any other float in fp32.
        codebooks_MCD: float codes of each book, same device as `x_NMD`.

    Returns:
        ProductCodes: codes in int64 and the residual in the type of the computation; codes are exact as in
        `residual_quantize`, the lowest number on a tie.

    Raises:
        ValueError: as `residual_quantize`.

    Source: arXiv 2602.09843 section 3 (Kelix: several books instead of one); product quantisation.
    """
    _check(x_NMD, codebooks_MCD, "N, M, D", "M, C, D")
    form = registration.product_quantize if torch.compiler.is_compiling() else registration.product_codes
    with torch.no_grad():
        return ProductCodes(*form(x_NMD, codebooks_MCD))


def _check(x: Tensor, codebooks: Tensor, x_letters: str, letters: str) -> None:
    if x.ndim != x_letters.count(",") + 1 or not x.is_floating_point():
        raise ValueError(f"x: expected float ({x_letters}), got {x.dtype} {tuple(x.shape)}")
    if codebooks.ndim != 3 or not codebooks.is_floating_point():
        raise ValueError(
            f"codebooks: expected float ({letters}), got {codebooks.dtype} {tuple(codebooks.shape)}"
        )
    if codebooks.shape[2] != x.shape[-1]:
        raise ValueError(f"widths differ: x has D={x.shape[-1]}, codebooks have D={codebooks.shape[2]}")
    if x.ndim == 3 and codebooks.shape[0] != x.shape[1]:
        raise ValueError(f"books differ: x has M={x.shape[1]} parts, codebooks have M={codebooks.shape[0]}")
    if codebooks.numel() == 0:
        raise ValueError(f"codebooks: expected {letters} >= 1, got {tuple(codebooks.shape)}")
    if x.device != codebooks.device:
        raise ValueError(f"x lies on {x.device} and codebooks on {codebooks.device}: move one of them")
