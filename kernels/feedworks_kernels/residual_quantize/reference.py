"""residual_quantize and product_quantize by definition: every squared distance written out.

Shape letters: N vectors, D width, L levels, C codes per level or book, M books.
"""

from __future__ import annotations

import torch
from torch import Tensor


def residual_quantize(x_ND: Tensor, codebooks_LCD: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """Nearest code, subtract, next level. Arguments and result as `feedworks_kernels.residual_quantize`."""
    residual_ND, codebooks_LCD = _floats(x_ND), codebooks_LCD.to(_floats(x_ND).dtype)
    codes_NL = torch.empty(x_ND.shape[0], codebooks_LCD.shape[0], dtype=torch.int64, device=x_ND.device)
    for level, codebook_CD in enumerate(codebooks_LCD):
        if normalise:
            residual_ND = torch.nn.functional.normalize(residual_ND, dim=1)
        for row, residual_D in enumerate(residual_ND):
            codes_NL[row, level] = (residual_D - codebook_CD).square().sum(dim=1).argmin()
        residual_ND = residual_ND - codebook_CD[codes_NL[:, level]]
    return codes_NL, residual_ND


def product_quantize(x_NMD: Tensor, codebooks_MCD: Tensor) -> tuple[Tensor, Tensor]:
    """Every book alone. Arguments and result as `feedworks_kernels.product_quantize`."""
    codes_NM = torch.empty(x_NMD.shape[:2], dtype=torch.int64, device=x_NMD.device)
    residual_NMD = torch.empty_like(_floats(x_NMD), memory_format=torch.contiguous_format)
    for book in range(x_NMD.shape[1]):
        code_N1, residual_ND = residual_quantize(x_NMD[:, book], codebooks_MCD[book : book + 1], False)
        codes_NM[:, book], residual_NMD[:, book] = code_N1[:, 0], residual_ND
    return codes_NM, residual_NMD


def _floats(x: Tensor) -> Tensor:
    x = x if x.dtype == torch.float64 else x.float()
    return x.clone(memory_format=torch.contiguous_format)
