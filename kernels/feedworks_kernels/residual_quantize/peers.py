"""Other ways to the codes of residual_quantize, for benches: faiss, plain products in blocks, FlashAssign.

Each function takes the vectors and codebooks, prepares what may be prepared, and returns a call that gives
the codes (N, L). Shape letters: N vectors, M rows of one block, D width, L levels, C codes per level.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Quantiser = Callable[[], Tensor]

# Rows of one block of `torch_blocks`.
_ROWS = 4096


def peers(x_ND: Tensor, codebooks_LCD: Tensor) -> dict[str, Quantiser]:
    """Return every peer that runs where the vectors lie: on a CPU faiss (where installed) and torch."""
    quantisers = {"torch_blocks": torch_blocks(x_ND, codebooks_LCD)}
    if x_ND.is_cuda:
        if importlib.util.find_spec("flash_kmeans"):
            quantisers["flash_assign"] = flash_assign(x_ND, codebooks_LCD)
        return quantisers
    if importlib.util.find_spec("faiss"):
        quantisers["faiss_flat"] = faiss_flat(x_ND, codebooks_LCD)
        num_codes = codebooks_LCD.shape[1]
        if num_codes & (num_codes - 1) == 0:  # faiss packs whole bits
            quantisers["faiss_residual_quantizer"] = faiss_residual_quantizer(x_ND, codebooks_LCD)
    return quantisers


def torch_blocks(x_ND: Tensor, codebooks_LCD: Tensor) -> Quantiser:
    """`addmm` and `argmin` over blocks of rows."""

    def run() -> Tensor:
        residual_ND, half_LC = x_ND.clone(), codebooks_LCD.square().sum(dim=2) / 2
        codes_NL = torch.empty(len(x_ND), len(codebooks_LCD), dtype=torch.int64, device=x_ND.device)
        for residual_MD, codes_ML in zip(
            torch.split(residual_ND, _ROWS), torch.split(codes_NL, _ROWS), strict=True
        ):
            for level, codebook_CD in enumerate(codebooks_LCD):
                score_MC = torch.addmm(half_LC[level], residual_MD, codebook_CD.T, alpha=-1)
                codes_ML[:, level] = score_MC.argmin(dim=1)
                residual_MD -= codebook_CD[codes_ML[:, level]]
        return codes_NL

    return run


def faiss_flat(x_ND: Tensor, codebooks_LCD: Tensor) -> Quantiser:
    """One exact index of faiss a level."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    x, codebooks = x_ND.numpy(), codebooks_LCD.numpy()
    indexes = [faiss.IndexFlatL2(x.shape[1]) for _ in codebooks]
    for index, codebook in zip(indexes, codebooks, strict=True):
        index.add(codebook)

    def run() -> Tensor:
        residual, columns = x.copy(), []
        for index, codebook in zip(indexes, codebooks, strict=True):
            columns.append(index.assign(residual, 1)[:, 0])
            residual -= codebook[columns[-1]]
        return torch.from_numpy(np.stack(columns, axis=1))

    return run


def faiss_residual_quantizer(x_ND: Tensor, codebooks_LCD: Tensor) -> Quantiser:
    """The quantiser of faiss itself, greedy as ours: its default keeps five beams."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    x, codebooks = x_ND.numpy(), codebooks_LCD.numpy()
    num_levels, num_codes, width = codebooks.shape
    bits = (num_codes - 1).bit_length()
    quantizer = faiss.ResidualQuantizer(width, num_levels, bits)
    quantizer.max_beam_size = 1
    faiss.copy_array_to_vector(codebooks.ravel(), quantizer.codebooks)
    quantizer.is_trained = True
    return lambda: torch.from_numpy(
        faiss.unpack_bitstrings(quantizer.compute_codes(x), num_levels, bits).astype(np.int64)
    )


def flash_assign(x_ND: Tensor, codebooks_LCD: Tensor) -> Quantiser:
    """One FlashAssign (flash-kmeans, arXiv 2603.09229) a level, in the type of the vectors; only on CUDA."""
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    codebooks_LCD = codebooks_LCD.to(x_ND.dtype)
    square_LC = codebooks_LCD.float().square().sum(dim=2)

    def run() -> Tensor:
        residual_ND, columns = x_ND, []
        for codebook_CD, square_C in zip(codebooks_LCD, square_LC, strict=True):
            # |r|^2 is the same for all codes; it is part of the call and read there.
            square_N = residual_ND.float().square().sum(dim=1)
            code_N = euclid_assign_triton(
                residual_ND[None], codebook_CD[None], square_N[None], c_sq=square_C[None]
            )[0].long()
            columns.append(code_N)
            residual_ND = residual_ND - codebook_CD.index_select(0, code_N)
        return torch.stack(columns, dim=1)

    return run
