"""residual_quantize and product_quantize: codes of vectors, against faiss, plain products and FlashAssign.

Mode `forward` has one code a level, each of what the levels before left over; `product` one code a part, each
part of a vector with a book of its own.

Shape letters: N vectors, D width (of a part), L levels or parts, C codes of each.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.registry import Case, Operator, Plan, Provider, Work, our_providers
from feedworks_kernels import product_quantize, residual_quantize
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
    """Vectors (N, D), or parts (N, L, D); codebooks that shrink from level to level."""

    x: Tensor
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
        modes=("forward", "product"),
        shapes={"cpu": _sizes("cpu"), "cuda": _sizes("cuda")},
        quick={"D 16, C 64, L 3": {"N": 2000, "D": 16, "C": 64, "L": _LEVELS}},
        check={"D 24, C 32, L 2": {"N": 333, "D": 24, "C": 32, "L": 2}},
        dtypes={"cpu": ("fp32",), "cuda": ("fp32", "bf16")},
    )

    def wanted(self, mode: str, shape: str, device: str) -> bool:
        """Parts are narrow."""
        return mode == "forward" or not shape.startswith("D 512")

    def random_sizes(self, draw: random.Random) -> dict[str, int]:
        """Draw widths that are no multiples of anything."""
        most = {"N": 3000, "D": 200, "C": 700, "L": 4}
        return {letter: draw.randint(1, size) for letter, size in most.items()}

    def inputs(self, case: Case, seed: int) -> Inputs:
        """Draw normal vectors; level l has codes of length 0.7^l."""
        generator = torch.Generator(case.device).manual_seed(seed)
        sizes, on = case.sizes, {"generator": generator, "device": case.device}
        parts = (sizes["L"],) if case.mode == "product" else ()
        x = torch.randn(sizes["N"], *parts, sizes["D"], **on)  # type: ignore[call-overload]
        codebooks_LCD = torch.randn(sizes["L"], sizes["C"], sizes["D"], **on)  # type: ignore[call-overload]
        shrink_L = 0.7 ** torch.arange(1, sizes["L"] + 1, device=case.device)
        return Inputs(x.to(case.kind), (codebooks_LCD * shrink_L.view(-1, 1, 1)).to(case.kind))

    def providers(self, case: Case) -> Sequence[Provider]:
        """Ours and the peers of the device."""
        if case.mode == "product":
            return _product_providers(case)
        half = _MARGIN_OF_HALVES if case.dtype in ("bf16", "fp16") else None
        found = our_providers(_ours, case.device)
        found.append(Provider("torch_blocks", lambda inputs: peers.torch_blocks(*inputs), tolerance=half))
        return [*found, *(each for each, _ in _foreign(case))]

    def work(self, case: Case) -> Work:
        """One product a level; the vectors are read once, the codes (int64) and the residual written."""
        rows, width, codes, levels = (case.sizes[letter] for letter in "NDCL")
        numbers = rows * width * (levels if case.mode == "product" else 1)
        moved = (numbers + levels * codes * width) * case.kind.itemsize + rows * levels * 8 + numbers * 4
        return Work(2.0 * rows * width * codes * levels, moved)

    def tolerance(self, case: Case) -> float:
        """The stated margin, whatever the type: ours computes in fp32."""
        return _MARGIN

    def error(self, case: Case, inputs: Inputs, result: Tensor) -> float:
        """Follow the codes in float64: how much nearer the nearest code was, over (|r| + |c|)^2."""
        x, codebooks_LCD = inputs
        step = max(1, len(x) // _CHECKED_ROWS)
        chosen, codes_NL = x[::step].double(), result[::step].to(x.device).long()
        if result.shape != (len(x), len(codebooks_LCD)) or int(codes_NL.min()) < 0:
            return float("inf")
        worst, residual_ND = 0.0, chosen
        for level, codebook_CD in enumerate(codebooks_LCD.double()):
            code_N = codes_NL[:, level]
            if case.mode == "product":
                residual_ND = chosen[:, level]
            distance_NC = torch.cdist(residual_ND, codebook_CD, compute_mode="donot_use_mm_for_euclid_dist")
            chosen_N = distance_NC.gather(1, code_N.unsqueeze(1)).squeeze(1).square()
            length_N = residual_ND.norm(dim=1) + codebook_CD.norm(dim=1)[code_N]
            excess_N = (chosen_N - distance_NC.amin(dim=1).square()) / length_N.square()
            worst = max(worst, float(excess_N.max()))
            residual_ND = residual_ND - codebook_CD[code_N]
        return worst


def _ours(inputs: Inputs) -> Call:
    return lambda: residual_quantize(*inputs).codes_NL


def _ours_by_parts(inputs: Inputs) -> Call:
    return lambda: product_quantize(*inputs).codes_NM


def _product_providers(case: Case) -> list[Provider]:
    half = _MARGIN_OF_HALVES if case.dtype in ("bf16", "fp16") else None
    return [
        *our_providers(_ours_by_parts, case.device),
        Provider("torch_blocks", partial(_by_parts, peers.torch_blocks), tolerance=half),
        *(each._replace(bind=partial(_by_parts, way)) for each, way in _foreign(case)),
    ]


def _by_parts(quantiser: Callable[[Tensor, Tensor], peers.Quantiser], inputs: Inputs) -> Call:
    """One part after the other, each a single level."""
    pairs = zip(inputs.x.unbind(dim=1), inputs.codebooks_LCD, strict=True)
    calls = [quantiser(part_ND.contiguous(), book_CD[None]) for part_ND, book_CD in pairs]
    return lambda: torch.cat([call() for call in calls], dim=1)


def _foreign(case: Case) -> list[tuple[Provider, Callable[[Tensor, Tensor], peers.Quantiser]]]:
    """The peers that are another package's, with what makes a quantiser of vectors and codebooks."""
    ways: dict[str, tuple[Callable[[Tensor, Tensor], peers.Quantiser], str, float | None]]
    if case.device == "cuda":
        absent = "" if importlib.util.find_spec("flash_kmeans") else "flash_kmeans is not installed"
        # Its products of fp32 are TF32.
        ways = {"flash_assign": (peers.flash_assign, absent, _MARGIN_OF_HALVES)}
    else:
        absent = "" if importlib.util.find_spec("faiss") else "faiss is not installed"
        ways = {"faiss_flat": (peers.faiss_flat, absent, None)}
        if case.mode == "forward":
            bits = absent or ("" if case.sizes["C"].bit_count() == 1 else "it packs whole bits")
            ways["faiss_residual_quantizer"] = (peers.faiss_residual_quantizer, bits, None)
    return [
        (Provider(name, partial(_bound, way), missing, tolerance=loose), way)
        for name, (way, missing, loose) in ways.items()
    ]


def _bound(quantiser: Callable[[Tensor, Tensor], peers.Quantiser], inputs: Inputs) -> Call:
    return quantiser(*inputs)


OPERATOR = ResidualQuantize()
