"""residual_quantize: codes of vectors, against faiss, plain products in blocks and three FlashAssign calls.

Shape letters: N vectors, D width, L levels, C codes per level.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.registry import Case, Operator, Plan, Provider, Work, our_providers
from feedworks_kernels import residual_quantize
from feedworks_kernels.measuring import Call
from feedworks_kernels.residual_quantize import peers

_LEVELS = 3
# Vectors whose codes are looked at in float64.
_CHECKED_ROWS = 1024
# A code may be another one where the distances differ by less than this times (|r| + |c|)^2.
_MARGIN = 1e-5
# Peers that multiply in the vectors' own type err by its rounding.
_MARGIN_OF_HALVES = 2e-2


class Inputs(NamedTuple):
    """Vectors, and codebooks that shrink from level to level."""

    x_ND: Tensor
    codebooks_LCD: Tensor


def _sizes(device: str) -> dict[str, dict[str, int]]:
    shapes = {}
    for width in (64, 512):
        for codes in (256, 8192):
            # A CPU gets about 16 GFLOP a call.
            rows = (1 << 20) * 64 // width if device == "cuda" else int(16e9 / (2 * width * codes * _LEVELS))
            shapes[f"D {width}, C {codes}, L {_LEVELS}"] = {"N": rows, "D": width, "C": codes, "L": _LEVELS}
    return shapes


class ResidualQuantize(Operator):
    """Codes alone are compared: the residual follows from them."""

    name = "residual_quantize"
    plan = Plan(
        modes=("forward",),
        shapes={"cpu": _sizes("cpu"), "cuda": _sizes("cuda")},
        quick={"D 16, C 64, L 3": {"N": 2000, "D": 16, "C": 64, "L": _LEVELS}},
        check={"D 24, C 32, L 2": {"N": 333, "D": 24, "C": 32, "L": 2}},
        dtypes={"cpu": ("fp32",), "cuda": ("fp32", "bf16")},
    )

    def random_sizes(self, draw: random.Random) -> dict[str, int]:
        """Draw widths that are no multiples of anything."""
        most = {"N": 3000, "D": 200, "C": 700, "L": 4}
        return {letter: draw.randint(1, size) for letter, size in most.items()}

    def inputs(self, case: Case, seed: int) -> Inputs:
        """Draw normal vectors; level l has codes of length 0.7^l."""
        generator = torch.Generator(case.device).manual_seed(seed)
        sizes, on = case.sizes, {"generator": generator, "device": case.device}
        x_ND = torch.randn(sizes["N"], sizes["D"], **on)  # type: ignore[call-overload]
        codebooks_LCD = torch.randn(sizes["L"], sizes["C"], sizes["D"], **on)  # type: ignore[call-overload]
        shrink_L = 0.7 ** torch.arange(1, sizes["L"] + 1, device=case.device)
        return Inputs(x_ND.to(case.kind), (codebooks_LCD * shrink_L.view(-1, 1, 1)).to(case.kind))

    def providers(self, case: Case) -> Sequence[Provider]:
        """Ours and the peers of the device."""
        half = _MARGIN_OF_HALVES if case.dtype in ("bf16", "fp16") else None
        found = our_providers(_ours, case.device)
        found.append(Provider("torch_blocks", lambda inputs: peers.torch_blocks(*inputs), tolerance=half))
        if case.device == "cuda":
            absent = "" if importlib.util.find_spec("flash_kmeans") else "flash_kmeans is not installed"
            loose = _MARGIN_OF_HALVES  # TF32 products for fp32
            found.append(
                Provider("flash_assign", lambda inputs: peers.flash_assign(*inputs), absent, tolerance=loose)
            )
            return found
        absent = "" if importlib.util.find_spec("faiss") else "faiss is not installed"
        return [
            *found,
            Provider("faiss_flat", lambda inputs: peers.faiss_flat(*inputs), absent),
            Provider(
                "faiss_residual_quantizer", lambda inputs: peers.faiss_residual_quantizer(*inputs), absent
            ),
        ]

    def work(self, case: Case) -> Work:
        """One product a level; the vectors are read once, the codes (int64) and the residual written."""
        rows, width, codes, levels = (case.sizes[letter] for letter in "NDCL")
        floats = rows * width + levels * codes * width
        moved = floats * case.kind.itemsize + rows * levels * 8 + rows * width * 4
        return Work(2.0 * rows * width * codes * levels, moved)

    def tolerance(self, case: Case) -> float:
        """The stated margin, whatever the type: ours computes in fp32."""
        return _MARGIN

    def error(self, case: Case, inputs: Inputs, result: Tensor) -> float:
        """Follow the codes in float64: how much nearer the nearest code was, over (|r| + |c|)^2."""
        x_ND, codebooks_LCD = inputs
        step = max(1, len(x_ND) // _CHECKED_ROWS)
        residual_ND, codes_NL = x_ND[::step].double(), result[::step].to(x_ND.device).long()
        if result.shape != (len(x_ND), len(codebooks_LCD)) or int(codes_NL.min()) < 0:
            return float("inf")
        worst = 0.0
        for code_N, codebook_CD in zip(codes_NL.unbind(dim=1), codebooks_LCD.double(), strict=True):
            distance_NC = torch.cdist(residual_ND, codebook_CD, compute_mode="donot_use_mm_for_euclid_dist")
            chosen_N = distance_NC.gather(1, code_N.unsqueeze(1)).squeeze(1).square()
            length_N = residual_ND.norm(dim=1) + codebook_CD.norm(dim=1)[code_N]
            excess_N = (chosen_N - distance_NC.amin(dim=1).square()) / length_N.square()
            worst = max(worst, float(excess_N.max()))
            residual_ND = residual_ND - codebook_CD[code_N]
        return worst


def _ours(inputs: Inputs) -> Call:
    return lambda: residual_quantize(*inputs).codes_NL


OPERATOR = ResidualQuantize()
