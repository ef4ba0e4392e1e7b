"""residual_quantize in blocks of rows: one matrix product and one search for the least score a level.

Shape letters: N vectors, M rows of one block (in product_quantize: books), D width, L levels, C codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from feedworks_kernels import onednn

# Scores are read again at once, so a block should fit a core's share of the cache; with fewer rows than this
# the codebook is read too often (64 rows of 8,192 codes: 2 to 4 times slower).
_BLOCK_BYTES = 4 << 20
_BLOCK_ROWS = 256


def residual_quantize(x_ND: Tensor, codebooks_LCD: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    """Nearest code by |c|^2 / 2 - r.c. Arguments and result as `feedworks_kernels.residual_quantize`."""
    work = torch.float64 if x_ND.dtype == torch.float64 else torch.float32
    x_ND, codebooks_LCD = x_ND.to(work), codebooks_LCD.to(work)
    num_rows, (num_levels, num_codes, _) = x_ND.shape[0], codebooks_LCD.shape
    half_square_LC = torch.linalg.vector_norm(codebooks_LCD, dim=2).square_() / 2
    codes_NL = torch.empty(num_rows, num_levels, dtype=torch.int64, device=x_ND.device)
    # -r is kept instead of r: the score is then one product plus a bias, with the codebook as it is.
    negative_ND = x_ND.neg().contiguous()
    rows = _block_rows(num_rows, num_codes, x_ND.element_size())
    with _full_precision(x_ND.device):
        for low in range(0, num_rows, rows):
            negative_MD, codes_ML = negative_ND[low : low + rows], codes_NL[low : low + rows]
            for level, codebook_CD in enumerate(codebooks_LCD):
                if normalise:
                    negative_MD.copy_(torch.nn.functional.normalize(negative_MD, dim=1))
                codes_ML[:, level] = _nearest(negative_MD, codebook_CD, half_square_LC[level])
                negative_MD += codebook_CD[codes_ML[:, level]]
    return codes_NL, negative_ND.neg_()


def product_quantize(x_NMD: Tensor, codebooks_MCD: Tensor) -> tuple[Tensor, Tensor]:
    """Each book in turn, block by block. As `feedworks_kernels.product_quantize`."""
    work = torch.float64 if x_NMD.dtype == torch.float64 else torch.float32
    codebooks_MCD = codebooks_MCD.to(work)
    half_square_MC = torch.linalg.vector_norm(codebooks_MCD, dim=2).square_() / 2
    codes_NM = torch.empty(x_NMD.shape[:2], dtype=torch.int64, device=x_NMD.device)
    residual_NMD = torch.empty(x_NMD.shape, dtype=work, device=x_NMD.device)
    num_rows = x_NMD.shape[0]
    rows = _block_rows(num_rows, codebooks_MCD.shape[1], residual_NMD.element_size())
    with _full_precision(x_NMD.device):
        for low in range(0, num_rows, rows):
            high = min(num_rows, low + rows)
            for book, codebook_CD in enumerate(codebooks_MCD):
                # The rows of one book lie apart: a copy that stays in the cache is their only pass.
                negative_RD = x_NMD[low:high, book].to(work).neg()
                code_R = _nearest(negative_RD, codebook_CD, half_square_MC[book])
                codes_NM[low:high, book] = code_R
                torch.neg(negative_RD.add_(codebook_CD[code_R]), out=residual_NMD[low:high, book])
    return codes_NM, residual_NMD


def _block_rows(num_rows: int, num_codes: int, number_bytes: int) -> int:
    """Return how many rows a block has: as even as may be, scores of about `_BLOCK_BYTES`."""
    least_rows = max(_BLOCK_ROWS, _BLOCK_BYTES // (num_codes * number_bytes))
    return -(-num_rows // max(1, num_rows // least_rows)) or 1


def _nearest(negative_MD: Tensor, codebook_CD: Tensor, half_square_C: Tensor) -> Tensor:
    """Number of the code with the least score, the first of equal ones."""
    score_MC = _scores(negative_MD, codebook_CD, half_square_C)
    if score_MC.is_cuda:
        return score_MC.argmin(dim=1)
    # argmin on a CPU looks at one element a nanosecond. Minimum, comparison and product are vectorised and
    # take a quarter of that: the marks of the minimum, weighted with C + number, add up to less than 2 C
    # exactly where one code alone is least. The other rows (ties, NaN) are done again by argmin.
    num_codes = score_MC.shape[1]
    weight_C = torch.arange(num_codes, 2 * num_codes, dtype=score_MC.dtype)
    code_M = torch.mv(score_MC.eq_(score_MC.amin(dim=1, keepdim=True)), weight_C).long() - num_codes
    again = torch.nonzero((code_M < 0) | (code_M >= num_codes)).squeeze(1)
    if again.numel():
        code_M[again] = _scores(negative_MD[again], codebook_CD, half_square_C).argmin(dim=1)
    return code_M


def _scores(negative_MD: Tensor, codebook_CD: Tensor, half_square_C: Tensor) -> Tensor:
    if onednn.can_multiply(negative_MD):
        return onednn.linear(negative_MD, codebook_CD, half_square_C)
    return torch.addmm(half_square_C, negative_MD, codebook_CD.T)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Keep TF32 out, a common setting in training: it flips codes. CPU products are whole anyway."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
