"""residual_quantize in blocks of rows: one matrix product and one argmin a level.

Shape letters: N vectors, M rows of one block, D width, L levels, C codes per level.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Scores of one block; 4 MiB stay in a core's share of the cache between the product and the argmin.
_BLOCK_BYTES = 4 << 20


def residual_quantize(x_ND: Tensor, codebooks_LCD: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """Nearest code by |c|^2 / 2 - r.c. Arguments and result as `feedworks_kernels.residual_quantize`."""
    num_rows, num_levels = x_ND.shape[0], codebooks_LCD.shape[0]
    half_square_LC = codebooks_LCD.square().sum(dim=2) / 2
    codes_NL = torch.empty(num_rows, num_levels, dtype=torch.int64, device=x_ND.device)
    residual_ND = x_ND.clone()
    block = max(1, _BLOCK_BYTES // (codebooks_LCD.shape[1] * x_ND.element_size()))
    for low in range(0, num_rows, block):
        residual_MD, codes_ML = residual_ND[low : low + block], codes_NL[low : low + block]
        for level, codebook_CD in enumerate(codebooks_LCD):
            if normalise:
                residual_MD.copy_(torch.nn.functional.normalize(residual_MD, dim=1))
            score_MC = torch.addmm(half_square_LC[level], residual_MD, codebook_CD.T, alpha=-1)
            code_M = score_MC.argmin(dim=1)
            codes_ML[:, level] = code_M
            residual_MD -= codebook_CD[code_M]
    return codes_NL, residual_ND
