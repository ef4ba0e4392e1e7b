"""residual_quantize: hand-worked codes, every form against an exact search, ties, broken inputs."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks_kernels import residual_quantize
from feedworks_kernels.testing import TOLERANCE, assert_close, forced, poisoned_memory

FORMS = ("reference", "eager")


@pytest.mark.parametrize("form", FORMS)
def test_hand_worked(form):
    codebooks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.0, -0.5]]])
    with forced(form):
        codes, residual = residual_quantize(torch.tensor([[1.4, 0.1], [0.1, 0.5]]), codebooks)
        unit = residual_quantize(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), codebooks[:1], normalise=True)
    assert codes.tolist() == [[0, 0], [1, 1]]
    torch.testing.assert_close(residual, torch.tensor([[-0.1, 0.1], [0.1, 0.0]]))
    assert unit.codes_NL.tolist() == [[0], [1]]
    torch.testing.assert_close(unit.residual_ND, torch.tensor([[-1.0, 0.0], [0.6, -0.2]]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.sampled_from([0, 1, 63, 600]),
    width=st.sampled_from([1, 3, 64, 100]),
    num_levels=st.integers(1, 4),
    num_codes=st.sampled_from([1, 2, 63, 500]),
    normalise=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_codes_are_nearest_wherever_the_margin_decides(
    seed, num_rows, width, num_levels, num_codes, normalise, dtype
):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(num_rows, width, generator=generator).to(dtype)
    codebooks = torch.randn(num_levels, num_codes, width, generator=generator).to(dtype)
    with forced("eager"), poisoned_memory():
        codes, residual = residual_quantize(x, codebooks, normalise=normalise)
    # Follow the returned codes in fp64, so that one near tie does not excuse the levels behind it.
    exact = x.double()
    for level, codebook in enumerate(codebooks.double()):
        if normalise:
            exact = torch.nn.functional.normalize(exact, dim=1)
        distance = (exact.unsqueeze(1) - codebook).square().sum(dim=2)
        chosen = distance.gather(1, codes[:, level : level + 1]).squeeze(1)
        size = (exact.norm(dim=1) + codebook.norm(dim=1).amax()).square()
        assert (chosen - distance.amin(dim=1) <= TOLERANCE[dtype] * size).all()
        exact = exact - codebook[codes[:, level]]
    assert_close(residual, exact, torch.float32)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), normalise=st.booleans())
def test_eager_equals_reference(seed, normalise):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    codebooks = torch.randn(3, 40, 8, generator=generator, dtype=torch.float64)
    with forced("reference"):
        expected = residual_quantize(x, codebooks, normalise=normalise)
    got = residual_quantize(x, codebooks, normalise=normalise)
    assert torch.equal(got.codes_NL, expected.codes_NL)
    assert_close(got.residual_ND, expected.residual_ND, torch.float64)


@pytest.mark.parametrize("form", FORMS)
def test_the_first_of_equal_codes_is_taken(form):
    codebooks = torch.tensor([[[5.0], [1.0], [1.0], [-1.0]]]).repeat(1, 8, 1)
    with forced(form):
        codes, _ = residual_quantize(torch.tensor([[1.0], [-2.0], [4.0], [0.9]]), codebooks)
    assert codes.tolist() == [[1], [3], [0], [1]]


def test_blocks_of_rows_do_not_matter(monkeypatch):
    eager = importlib.import_module("feedworks_kernels.residual_quantize.eager")
    generator = torch.Generator().manual_seed(0)
    x, codebooks = torch.randn(500, 16, generator=generator), torch.randn(3, 100, 16, generator=generator)
    whole = residual_quantize(x, codebooks)
    monkeypatch.setattr(eager, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(eager, "_BLOCK_ROWS", 63)
    assert torch.equal(residual_quantize(x, codebooks).codes_NL, whole.codes_NL)
    assert torch.equal(residual_quantize(x.T.contiguous().T, codebooks).codes_NL, whole.codes_NL)


def test_without_onednn_the_codes_are_the_same(monkeypatch):
    eager = importlib.import_module("feedworks_kernels.residual_quantize.eager")
    generator = torch.Generator().manual_seed(0)
    x, codebooks = torch.randn(2000, 64, generator=generator), torch.randn(3, 256, 64, generator=generator)
    codes = residual_quantize(x, codebooks).codes_NL
    monkeypatch.setattr(eager.onednn, "can_multiply", lambda tensor: False)
    assert torch.equal(residual_quantize(x, codebooks).codes_NL, codes)


@pytest.mark.parametrize("setting", ["highest", "medium"])
def test_reduced_precision_of_training_does_not_leak_in(setting):
    eager = importlib.import_module("feedworks_kernels.residual_quantize.eager")
    generator = torch.Generator().manual_seed(0)
    x, codebooks = torch.randn(2000, 64, generator=generator), torch.randn(3, 256, 64, generator=generator)
    codes = residual_quantize(x, codebooks).codes_NL
    torch.set_float32_matmul_precision(setting)
    try:
        assert torch.equal(residual_quantize(x, codebooks).codes_NL, codes)
        before = torch.backends.cuda.matmul.fp32_precision
        with eager._full_precision(torch.device("cuda")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == before
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")


def test_half_precision_is_computed_in_fp32():
    generator = torch.Generator().manual_seed(0)
    x, codebooks = torch.randn(99, 8, generator=generator), torch.randn(2, 9, 8, generator=generator)
    codes, residual = residual_quantize(x.bfloat16(), codebooks.bfloat16())
    expected = residual_quantize(x.bfloat16().float(), codebooks.bfloat16().float())
    assert residual.dtype == torch.float32
    assert torch.equal(codes, expected.codes_NL)


X, CODEBOOKS = torch.zeros(5, 4), torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("x", "codebooks", "message"),
    [
        (X[0], CODEBOOKS, "x: expected float"),
        (X.long(), CODEBOOKS, "x: expected float"),
        (X, CODEBOOKS[0], "codebooks: expected float"),
        (X, CODEBOOKS.long(), "codebooks: expected float"),
        (X[:, :3], CODEBOOKS, "widths differ: x has D=3, codebooks have D=4"),
        (X, CODEBOOKS[:0], "expected L, C, D >= 1"),
        (X, CODEBOOKS[:, :0], "expected L, C, D >= 1"),
        (X, CODEBOOKS.to("meta"), "x lies on cpu and codebooks on meta"),
        (X.index_fill(0, torch.tensor([3]), torch.nan), CODEBOOKS, "x row 3 or the codebooks hold NaN"),
        (X.index_fill(0, torch.tensor([2]), torch.inf), CODEBOOKS, "x row 2 or the codebooks hold NaN"),
        (X, CODEBOOKS.index_fill(1, torch.tensor([1]), torch.nan), "codebooks hold NaN"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_bad_input_is_named(form, x, codebooks, message):
    with forced(form), pytest.raises(ValueError, match=message):
        residual_quantize(x, codebooks)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "normalise"), [(1e18, True), (1e25, True), (1e25, False)])
def test_numbers_whose_squares_leave_fp32(form, size, normalise):
    """Unrefused, a vector of 1e25 scaled to length 1 is zero, and the code any."""
    x, codebooks = torch.tensor([[1.0, 0.0]]), torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
    with forced(form):
        with pytest.raises(ValueError, match=r"x: expected numbers of at most 1e16, .* got 1e\+"):
            residual_quantize(x * size, codebooks, normalise=normalise)
        with pytest.raises(ValueError, match="codebooks: expected numbers of at most 1e16"):
            residual_quantize(x, codebooks * size, normalise=normalise)
        assert residual_quantize(x * 1e15, codebooks, normalise=True).codes_NL.item() == 1
        assert residual_quantize(x.double() * size, codebooks, normalise=True).codes_NL.item() == 1
