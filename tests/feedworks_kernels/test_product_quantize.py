"""product_quantize: one code per book; every form against an exact search, and as operators of torch."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import library

from feedworks_kernels import product_quantize, residual_quantize
from feedworks_kernels.testing import assert_close, forced, poisoned_memory

FORMS = ("reference", "eager")
registration = importlib.import_module("feedworks_kernels.residual_quantize.registration")


def parts(seed, num_rows, num_books, num_codes, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_books, width, generator=generator, dtype=torch.float64)
    codebooks = torch.randn(num_books, num_codes, width, generator=generator, dtype=torch.float64)
    return x.to(dtype), codebooks.to(dtype)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.sampled_from([0, 1, 40]),
    num_books=st.sampled_from([1, 2, 8]),
    width=st.sampled_from([1, 7, 32]),
    num_codes=st.sampled_from([1, 5, 100]),
)
def test_eager_equals_reference(seed, num_rows, num_books, width, num_codes):
    x, codebooks = parts(seed, num_rows, num_books, num_codes, width, torch.float64)
    with forced("reference"):
        expected = product_quantize(x, codebooks)
    with forced("eager"), poisoned_memory():
        got = product_quantize(x, codebooks)
    assert torch.equal(got.codes_NM, expected.codes_NM)
    assert_close(got.residual_NMD, expected.residual_NMD, torch.float64)


@pytest.mark.parametrize("form", FORMS)
def test_one_book_is_vector_quantisation(form):
    x, codebooks = parts(1, 50, 1, 30, 6)
    distance_NC = torch.cdist(x[:, 0].double(), codebooks[0].double())
    with forced(form):
        product, residual = product_quantize(x, codebooks), residual_quantize(x[:, 0], codebooks)
    assert torch.equal(product.codes_NM[:, 0], distance_NC.argmin(dim=1))
    assert torch.equal(product.codes_NM, residual.codes_NL)
    assert torch.equal(product.residual_NMD[:, 0], residual.residual_ND)


@pytest.mark.parametrize("form", FORMS)
def test_cut_vectors_are_coded_as_by_faiss(form):
    faiss = pytest.importorskip("faiss")
    x, codebooks = parts(2, 300, 8, 256, 4)
    quantizer = faiss.ProductQuantizer(32, 8, 8)
    faiss.copy_array_to_vector(codebooks.numpy().ravel(), quantizer.centroids)
    expected = quantizer.compute_codes(np.ascontiguousarray(x.flatten(1).numpy()))
    with forced(form):
        codes = product_quantize(x.flatten(1).unflatten(1, (8, 4)), codebooks).codes_NM
    assert np.array_equal(codes.numpy(), expected)


@pytest.mark.parametrize("form", FORMS)
def test_books_do_not_touch_each_other(form):
    x, codebooks = parts(3, 60, 4, 20, 5)
    changed = x.clone()
    changed[:, 2] = -3 * changed[:, 2]
    with forced(form):
        before, after = (product_quantize(each, codebooks).codes_NM for each in (x, changed))
    assert (before != after).any(dim=0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("form", FORMS)
def test_codes_and_residual_give_the_vector_back(form):
    x, codebooks = parts(4, 60, 4, 20, 5)
    with forced(form):
        codes, residual = product_quantize(x, codebooks)
    chosen = codebooks[torch.arange(4), codes]
    assert torch.equal(x - chosen, residual)


def test_strides_do_not_matter():
    x, codebooks = parts(5, 60, 4, 20, 6)
    expected = product_quantize(x, codebooks)
    for got in (
        product_quantize(x.permute(1, 2, 0).contiguous().permute(2, 0, 1), codebooks),
        product_quantize(x, codebooks.mT.contiguous().mT),
    ):
        assert torch.equal(got.codes_NM, expected.codes_NM)


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("op", ["residual", "product"])
def test_one_node_of_torch(op, requires_grad):
    x, codebooks = parts(6, 30, 3, 20, 6)
    if op == "residual":
        x, more = x[:, 0].contiguous(), (True,)
    else:
        more = ()

    def run(x):
        if op == "residual":
            return residual_quantize(x, codebooks, normalise=True)
        return product_quantize(x, codebooks)

    library.opcheck(getattr(registration, f"{op}_quantize"), (x, codebooks, *more))
    x = x.requires_grad_(requires_grad)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(x), run(x), strict=True):
        assert torch.equal(got, expected)
        assert not got.requires_grad
        assert not expected.requires_grad

    class Quantise(torch.nn.Module):
        def forward(self, x):
            return run(x)

    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(Quantise(), (x.detach(),), dynamic_shapes=(rows,)).run_decompositions({})
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count(f"feedworks.{op}_quantize.default") == 1
    assert torch.equal(program.module()(x.detach()[:7])[0], run(x[:7])[0])


X, CODEBOOKS = torch.zeros(5, 2, 4), torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("x", "codebooks", "message"),
    [
        (X[0], CODEBOOKS, r"x: expected float \(N, M, D\)"),
        (X.long(), CODEBOOKS, "x: expected float"),
        (X, CODEBOOKS[0], r"codebooks: expected float \(M, C, D\)"),
        (X, CODEBOOKS[:1], "books differ: x has M=2 parts, codebooks have M=1"),
        (X[..., :3], CODEBOOKS, "widths differ: x has D=3, codebooks have D=4"),
        (X[:, :0], CODEBOOKS[:0], "expected M, C, D >= 1"),
        (X, CODEBOOKS.to("meta"), "x lies on cpu and codebooks on meta"),
        (X.index_fill(0, torch.tensor([3]), torch.nan), CODEBOOKS, "x row 3 or the codebooks hold NaN"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_bad_input_is_named(form, x, codebooks, message):
    with forced(form), pytest.raises(ValueError, match=message):
        product_quantize(x, codebooks)
