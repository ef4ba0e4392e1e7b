"""residual_quantize's Triton kernels against float64; test_residual_quantize_kernel.py starts this.

On CUDA, or with TRITON_INTERPRET=1 (it must stand before triton is imported) in the interpreter on the CPU.
"""

from __future__ import annotations

import importlib
import os
import random
import time

import numpy as np
import pytest
import torch

from feedworks_kernels import product_quantize, residual_quantize
from feedworks_kernels.testing import assert_close, forced, poisoned_memory

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
EPSILON = 1e-5  # as the docstring of residual_quantize states it
kernel = importlib.import_module("feedworks_kernels.residual_quantize.kernel")
# N vectors, D width, L levels, C codes: whole tiles, ragged ones, one of each, rows that stay in memory.
SHAPES = [
    (128, 64, 2, 128),
    (150, 33, 3, 100),
    (70, 128, 2, 65),
    (5, 1, 1, 1),
    (66, 200, 2, 70),
    (20, 512, 2, 64),
]


@pytest.fixture(autouse=True)
def _triton():
    # The interpreter computes by numpy, which warns of inf - inf.
    with forced("triton"), np.errstate(all="ignore"):
        yield


def draw(seed, num_rows, width, num_levels, num_codes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, width, generator=generator)
    codebooks = torch.randn(num_levels, num_codes, width, generator=generator)
    codebooks *= 0.7 ** torch.arange(num_levels).view(-1, 1, 1)
    return x.to(DEVICE, dtype), codebooks.to(DEVICE, dtype)


def assert_nearest(found, x, codebooks, normalise=False):
    """Follow the returned codes in fp64, so that one near tie does not excuse the levels behind it."""
    codes, residual = (tensor.cpu() for tensor in found)
    exact = x.cpu().double()
    for level, codebook in enumerate(codebooks.cpu().double()):
        if normalise:
            exact = torch.nn.functional.normalize(exact, dim=1)
        distance = torch.cdist(exact, codebook, compute_mode="donot_use_mm_for_euclid_dist").square()
        chosen = distance.gather(1, codes[:, level : level + 1]).squeeze(1)
        size = (exact.norm(dim=1) + codebook.norm(dim=1).amax()).square()
        assert (chosen - distance.amin(dim=1) <= EPSILON * size).all()
        exact = exact - codebook[codes[:, level]]
    assert_close(residual, exact, torch.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalise", [False, True])
def test_codes_are_nearest(shape, dtype, normalise):
    x, codebooks = draw(1, *shape, dtype=dtype)
    with poisoned_memory():
        found = residual_quantize(x, codebooks, normalise=normalise)
    assert found.codes_NL.shape == (shape[0], shape[2])
    assert found.residual_ND.dtype == torch.float32
    assert_nearest(found, x, codebooks, normalise)


@pytest.mark.parametrize("width", [48, 160])
@pytest.mark.parametrize("others", [1, 2, 9])
def test_near_ties_are_decided_beyond_fp16(width, others):
    """Codes that are worse than the nearest by 2 to 4 epsilon: fp16, off by 25, cannot tell them apart."""
    x, codebooks = draw(2, 60, width, 1, 60)
    row, size = x[:, None], 4 * x.norm(dim=1).square()
    noise = 0.01 * torch.randn(60, others, width, generator=torch.Generator().manual_seed(3)).to(x)
    apart = (x + 0.1 * codebooks[0])[:, None] + noise - row
    worse = (torch.linspace(2, 4, others).to(x) * EPSILON * size[:, None]).unsqueeze(2)
    near = (0.1 * codebooks[0])[:, None]
    length = near.square().sum(dim=2, keepdim=True)
    others_apart = apart * ((length + worse) / apart.square().sum(dim=2, keepdim=True)).sqrt()
    codes = torch.cat((others_apart + row, near + row), dim=1).flatten(0, 1)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(4)).to(DEVICE)
    codebook = codes[order][None]
    distance = torch.cdist(x.double(), codebook[0].double(), compute_mode="donot_use_mm_for_euclid_dist")
    best = distance.square().topk(2, dim=1, largest=False)
    margin = (best.values[:, 1] - best.values[:, 0]) / size
    assert (margin < 5 * EPSILON).all()
    decided = margin > EPSILON
    assert decided.float().mean() > 0.9  # or the test would ask for little
    found = residual_quantize(x, codebook)
    assert torch.equal(found.codes_NL[decided, 0], best.indices[decided, 0])
    assert_nearest(found, x, codebook)


@pytest.mark.parametrize("width", [16, 160])
@pytest.mark.parametrize("copies", [2, 3, 40])
def test_the_first_of_equal_codes_is_taken(width, copies):
    """Small integers: every product and sum is exact, in any order."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(-3, 4, (50, width), generator=generator).float().to(DEVICE)
    codebooks = torch.randint(-3, 4, (2, 5, width), generator=generator).float().to(DEVICE)
    found = residual_quantize(x, codebooks.repeat(1, copies, 1))
    with forced("reference"):
        expected = residual_quantize(x.double(), codebooks.double())
    assert torch.equal(found.codes_NL, expected.codes_NL)
    assert torch.equal(found.residual_ND.double(), expected.residual_ND)


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
@pytest.mark.parametrize("width", [20, 140])
def test_size_does_not_matter(factor, width):
    x, codebooks = draw(6, 40, width, 1, 50)
    expected = residual_quantize(x, codebooks)
    found = residual_quantize(x * factor, codebooks * factor)
    assert torch.equal(found.codes_NL, expected.codes_NL)
    assert torch.equal(found.residual_ND, expected.residual_ND * factor)


def test_rows_of_very_different_size():
    x, codebooks = draw(7, 80, 24, 2, 60)
    x *= 10.0 ** torch.linspace(-12, 6, 80).to(DEVICE)[:, None]
    codebooks *= 10.0 ** torch.linspace(-6, 3, 60).to(DEVICE)[:, None]
    x[3] = 0
    codebooks[:, 7] = 0
    assert_nearest(residual_quantize(x, codebooks), x, codebooks)
    assert residual_quantize(x, codebooks).codes_NL[3].tolist() == [7, 7]


@pytest.mark.parametrize("width", [16, 130])
def test_nan_takes_some_code_and_stays(width):
    x, codebooks = draw(8, 40, width, 2, 30)
    expected = residual_quantize(x, codebooks)
    x[5, 3], x[7, 1] = torch.nan, torch.inf
    codes, residual = kernel.residual_quantize(x, codebooks, False)
    assert ((codes >= 0) & (codes < 30)).all()
    assert not residual[[5, 7]].isfinite().all(dim=1).any()
    others = [row for row in range(40) if row not in (5, 7)]
    assert torch.equal(codes[others], expected.codes_NL[others])


@pytest.mark.parametrize("width", [16, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_in_their_own_books(width, dtype):
    x, codebooks = draw(9, 90, 3 * width, 1, 210, dtype)
    x, codebooks = x.unflatten(1, (3, width)), codebooks.view(3, 210, width)
    codebooks[1, 20:40] = codebooks[1, :20]  # so that rows of this book are left open
    with poisoned_memory():
        found = product_quantize(x, codebooks)
    for book in range(3):
        part = found.codes_NM[:, book : book + 1], found.residual_NMD[:, book]
        assert_nearest(part, x[:, book], codebooks[book : book + 1])
    if not INTERPRETED:  # there BLAS gives equal columns unequal sums
        assert not ((found.codes_NM[:, 1] >= 20) & (found.codes_NM[:, 1] < 40)).any()


def test_strides_do_not_matter():
    x, codebooks = draw(10, 30, 32, 2, 50)
    expected = residual_quantize(x, codebooks)
    wide = torch.full((30, 40), torch.nan, device=DEVICE)
    wide[:, 3:35] = x
    for changed in (wide[:, 3:35], x.T.contiguous().T):
        found = residual_quantize(changed, codebooks.mT.contiguous().mT)
        assert torch.equal(found.codes_NL, expected.codes_NL)
        assert torch.equal(found.residual_ND, expected.residual_ND)
    parts, books = x.view(30, 2, 16), codebooks[..., :16]
    expected = product_quantize(parts, books).codes_NM
    for changed in (parts.mT.contiguous().mT, parts.transpose(0, 1).clone().transpose(0, 1)):
        assert torch.equal(product_quantize(changed, books).codes_NM, expected)


def test_no_rows_and_widths_that_do_not_fit():
    empty = residual_quantize(torch.zeros(0, 8, device=DEVICE), torch.zeros(2, 3, 8, device=DEVICE))
    assert empty.codes_NL.shape == (0, 2)
    assert empty.residual_ND.shape == (0, 8)
    x, codebooks = draw(11, 10, kernel.MOST_WIDTH + 1, 2, 20)
    assert_nearest(residual_quantize(x, codebooks), x, codebooks)
    double = residual_quantize(x.double(), codebooks.double())
    assert double.residual_ND.dtype == torch.float64


@pytest.mark.skipif(INTERPRETED, reason="needs more memory than a CPU test may take")
def test_more_than_2_to_the_31_numbers():
    num_rows = (1 << 31) // 128 + 1000
    x = torch.zeros(num_rows, 128, dtype=torch.bfloat16, device=DEVICE)
    x[-1000:] = torch.randn(1000, 128, device=DEVICE)
    codebooks = torch.randn(1, 64, 128, device=DEVICE).bfloat16()
    found = residual_quantize(x, codebooks)
    last = residual_quantize(x[-1000:], codebooks)
    assert torch.equal(found.codes_NL[-1000:], last.codes_NL)
    assert torch.equal(found.residual_ND[-1000:], last.residual_ND)


@pytest.mark.skipif(INTERPRETED, reason="needs more cores than one")
@pytest.mark.parametrize("width", [64, 512])
def test_a_hundred_runs_are_equal(width):
    x, codebooks = draw(12, 20_000, width, 3, 1000)
    codebooks[:, 500:] = codebooks[:, :500]  # half of the codes are open to the end
    first = residual_quantize(x, codebooks)
    for _ in range(100):
        again = residual_quantize(x, codebooks)
        assert torch.equal(again.codes_NL, first.codes_NL)
        assert torch.equal(again.residual_ND, first.residual_ND)
    assert (first.codes_NL < 500).all()


@pytest.mark.skipif(INTERPRETED, reason="two minutes on a GPU")
def test_random_shapes_for_two_minutes():
    dice, end_s = random.Random(0), time.perf_counter() + 120
    while time.perf_counter() < end_s:
        shape = dice.randrange(1, 3000), dice.randrange(1, 513), dice.choice([1, 3]), dice.randrange(1, 3000)
        dtype, normalise = dice.choice([torch.float32, torch.bfloat16]), dice.random() < 0.5
        x, codebooks = draw(dice.randrange(1 << 30), *shape, dtype=dtype)
        with poisoned_memory():
            found = residual_quantize(x, codebooks, normalise=normalise)
        assert_nearest(found, x, codebooks, normalise)
