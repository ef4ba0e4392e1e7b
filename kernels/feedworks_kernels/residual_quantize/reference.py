"""residual_quantize by its definition: every squared distance written out. The other forms are tested on it.

Shape letters: N vectors, D width, L levels, C codes per level.
"""

from __future__ import annotations

import torch
from torch import Tensor


def residual_quantize(x_ND: Tensor, codebooks_LCD: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """Nearest code, subtract, next level. Arguments and result as `feedworks_kernels.residual_quantize`."""
    residual_ND = x_ND.clone()
    codes_NL = torch.empty(x_ND.shape[0], codebooks_LCD.shape[0], dtype=torch.int64, device=x_ND.device)
    for level, codebook_CD in enumerate(codebooks_LCD):
        if normalise:
            residual_ND = torch.nn.functional.normalize(residual_ND, dim=1)
        for row, residual_D in enumerate(residual_ND):
            codes_NL[row, level] = (residual_D - codebook_CD).square().sum(dim=1).argmin()
        residual_ND = residual_ND - codebook_CD[codes_NL[:, level]]
    return codes_NL, residual_ND
