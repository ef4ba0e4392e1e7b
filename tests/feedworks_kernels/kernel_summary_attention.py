"""summary_attention's Triton kernels against float64; test_summary_attention_kernel.py starts this.

On CUDA, or with TRITON_INTERPRET=1 (it must stand before triton is imported) in the interpreter on the CPU.
"""

from __future__ import annotations

import importlib
import os
import time
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from feedworks_kernels import summary_attention
from feedworks_kernels.summary_attention import reference
from feedworks_kernels.summary_attention.pattern import Forward, Gradients, Pattern, Rows
from feedworks_kernels.testing import assert_close, forced, poisoned_memory, random_rows

kernel = importlib.import_module("feedworks_kernels.summary_attention.kernel")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
on_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")


class Case(NamedTuple):
    """Sizes; `documents`: several in one sequence; `unfinished`: a last part of a chunk has summaries."""

    B: int
    H: int
    G: int
    T: int
    D: int
    chunk: int
    summaries: int
    window: int
    documents: bool = False
    unfinished: bool = True
    dtype: torch.dtype = torch.float32


# Whole and ragged tiles, chunks of each size, windows from none to all, groups of 1 to 8 heads (3 and 6 do
# not go into one tile), less than a chunk, no summaries at all.
CASES = [
    Case(1, 1, 1, 150, 64, 8, 1, 2),
    Case(1, 2, 1, 130, 128, 8, 2, 3, documents=True),
    Case(2, 1, 1, 70, 64, 4, 1, 1, documents=True, unfinished=False),
    Case(1, 3, 1, 60, 16, 32, 2, 1, unfinished=False),
    Case(1, 6, 1, 40, 32, 8, 1, 0),
    Case(1, 8, 1, 20, 64, 1, 1, 0),
    Case(1, 4, 2, 30, 64, 1, 2, 3),
    Case(1, 1, 1, 130, 64, 16, 1, 100),
    Case(1, 2, 2, 100, 64, 5, 3, 4, documents=True),
    Case(1, 1, 1, 5, 64, 8, 1, 0),
    Case(1, 1, 1, 5, 64, 8, 1, 0, unfinished=False),
    Case(1, 2, 1, 100, 64, 8, 1, 2, dtype=torch.bfloat16),
    Case(1, 1, 1, 70, 128, 8, 2, 1, documents=True, dtype=torch.float16),
]


def problem(case, seed=0):
    """Draw rows, gradients of the outputs, and the pattern of a case."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (case.B, case.H, case.G, case.T, case.D)
    text, summary = random_rows(
        generator,
        sizes,
        chunk=case.chunk,
        summaries=case.summaries,
        unfinished=case.unfinished,
        dtype=case.dtype,
    )
    num_chunks = -(-case.T // case.chunk)
    first = None
    if case.documents:
        starts = torch.rand(case.B, num_chunks, generator=generator) < 0.2
        starts[:, 0] = True
        first = torch.where(starts, torch.arange(num_chunks), 0).cummax(dim=1).values.int().to(DEVICE)
    pattern = Pattern(
        case.chunk, min(case.window, num_chunks), case.summaries, case.D**-0.5, first_chunk_BC=first
    )
    grads = [torch.randn(x.query_BHTD.shape, generator=generator).to(case.dtype) for x in (text, summary)]
    return moved(text), moved(summary), pattern, [x.to(DEVICE) for x in grads]


def moved(rows):
    return Rows(*(x.to(DEVICE) for x in rows))


def doubled(*tensors):
    return [x.double() for x in tensors]


def expected(text, summary, pattern, grads):
    """Outputs and gradients in float64."""
    text, summary = Rows(*doubled(*text)), Rows(*doubled(*summary))
    forward = reference.summary_attention(text, summary, pattern)
    return forward, reference.gradient(*doubled(*grads), text, summary, forward, pattern)


def run(text, summary, pattern, grads):
    forward = kernel.summary_attention(text, summary, pattern)
    return forward, kernel.gradient(*grads, text, summary, forward, pattern)


def flat(forward, gradients):
    return [*forward, *gradients.text, *gradients.summary]


def assert_right(case, seed=0):
    text, summary, pattern, grads = problem(case, seed)
    with poisoned_memory():
        got = flat(*run(text, summary, pattern, grads))
    for mine, true in zip(got, flat(*expected(text, summary, pattern, grads)), strict=True):
        assert_close(mine, true, case.dtype)
    for place in (0, 1, 4, 5, 6, 7, 8, 9):
        assert got[place].dtype == case.dtype
    assert got[2].dtype == got[3].dtype == torch.float32


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case):
    assert_right(case)


def test_repeated_runs_are_equal():
    arguments = problem(CASES[1])
    first, second = flat(*run(*arguments)), flat(*run(*arguments))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("section", [2, 100])
def test_any_order_of_programs(monkeypatch, section):
    arguments = problem(Case(1, 3, 3, 70, 16, 32, 1, 0))
    plain = flat(*run(*arguments))
    monkeypatch.setattr(kernel, "section_of", lambda *_: section)
    for mine, theirs in zip(flat(*run(*arguments)), plain, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("splits", [1, 2, 7])
def test_parts_of_the_rows_add_up(monkeypatch, splits):
    text, summary, pattern, grads = problem(Case(1, 3, 1, 90, 16, 4, 1, 1))
    monkeypatch.setattr(kernel, "splits_of", lambda *_: splits)
    got = flat(*run(text, summary, pattern, grads))
    for mine, true in zip(got, flat(*expected(text, summary, pattern, grads)), strict=True):
        assert_close(mine, true, torch.float32)


def test_a_window_of_all_chunks_is_causal_attention():
    text, summary, pattern, _ = problem(Case(1, 2, 1, 70, 64, 8, 1, 9))
    got = kernel.summary_attention(text, summary, pattern)
    causal = F.scaled_dot_product_attention(*doubled(*text), is_causal=True, enable_gqa=True)
    assert_close(got.text_BHTD, causal, torch.float32)
    ones, zeros = torch.ones_like(text.query_BHTD), torch.zeros_like(summary.query_BHTD)
    gradients = kernel.gradient(ones, zeros, text, summary, got, pattern)
    assert not any(x.any() for x in gradients.summary)


def layouts(x):
    """The same numbers at other places in memory."""
    yield x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.full((*x.shape[:3], x.shape[3] + 8), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., :-8] = x
    yield wide[..., :-8]
    yield x.transpose(2, 3).contiguous().transpose(2, 3)


def test_strides_do_not_matter():
    text, summary, pattern, grads = problem(Case(1, 2, 1, 18, 16, 8, 1, 1))
    plain = flat(*run(text, summary, pattern, grads))

    def same(text, summary, grads):
        got = flat(*run(text, summary, pattern, grads))
        return all(torch.equal(mine, theirs) for mine, theirs in zip(got, plain, strict=True))

    for layout in range(3):
        strange = [list(layouts(x))[layout] for x in (*text, *summary, *grads)]
        assert same(Rows(*strange[:3]), Rows(*strange[3:6]), strange[6:])
        for place in range(layout, 8, 3):
            some = [*text, *summary, *grads]
            some[place] = strange[place]
            assert same(Rows(*some[:3]), Rows(*some[3:6]), some[6:])


def test_expanded_operands():
    text, summary, pattern, grads = problem(Case(1, 4, 2, 20, 16, 8, 1, 1))
    text = Rows(text[0][:, :1].expand(-1, 4, -1, -1), *(x[:, :1].expand(-1, 2, -1, -1) for x in text[1:]))
    grads = [grads[0][:, :, :1, :1].expand_as(grads[0]), grads[1][:, :, :1].expand_as(grads[1])]
    got = flat(*run(text, summary, pattern, grads))
    for mine, true in zip(got, flat(*expected(text, summary, pattern, grads)), strict=True):
        assert_close(mine, true, torch.float32)


@pytest.mark.parametrize(("width", "scale"), [(24, 0.2), (16, -0.2), (16, 0.0)])
def test_what_the_kernels_cannot_do_is_done_eagerly(width, scale):
    text, summary, pattern, grads = problem(Case(1, 2, 1, 20, width, 8, 1, 1))
    pattern = pattern._replace(scale=scale)
    got = flat(*run(text, summary, pattern, grads))
    for mine, true in zip(got, flat(*expected(text, summary, pattern, grads)), strict=True):
        assert_close(mine, true, torch.float32)


def test_large_and_equal_scores():
    """Scores of some thousands neither overflow nor lose what a row read before."""
    text, summary, pattern, grads = problem(Case(1, 1, 1, 50, 16, 8, 1, 1))
    text = Rows(text.query_BHTD * 100, text.key_BGTD * 100, text.value_BGTD)
    forward, _ = run(text, summary, pattern, grads)
    true, _ = expected(text, summary, pattern, grads)
    assert forward.text_BHTD.isfinite().all()
    torch.testing.assert_close(forward.text_lse_BHT.double(), true.text_lse_BHT, rtol=1e-5, atol=1e-5)
    same = Rows(text.query_BHTD, torch.zeros_like(text.key_BGTD), torch.ones_like(text.value_BGTD))
    flat_summary = summary._replace(
        key_BGTD=torch.zeros_like(summary.key_BGTD), value_BGTD=torch.ones_like(summary.value_BGTD)
    )
    equal = kernel.summary_attention(same, flat_summary, pattern)
    assert_close(equal.text_BHTD, torch.ones_like(equal.text_BHTD), torch.float32)


def test_the_public_function_under_autograd():
    text, summary, pattern, grads = problem(Case(1, 2, 1, 30, 16, 8, 1, 1, documents=True))
    leaves = [x.requires_grad_() for x in (*text, *summary)]
    with forced("triton"):
        out = summary_attention(
            Rows(*leaves[:3]), Rows(*leaves[3:]), chunk=8, window=1, first_chunk_BC=pattern.first_chunk_BC
        )
        got = torch.autograd.grad(out, leaves, grads)
    true_forward, true = expected(
        *(Rows(*(x.detach() for x in rows)) for rows in (text, summary)), pattern, grads
    )
    for mine, theirs in zip((*out, *got), (*true_forward[:2], *true.text, *true.summary), strict=True):
        assert_close(mine.detach(), theirs, torch.float32)


# Each new type, width, group and whether there are documents is compiled, some seconds for six kernels.
KINDS = [
    *((torch.bfloat16, width, *heads) for width in (64, 128) for heads in ((4, 4), (4, 1), (8, 1), (6, 2))),
    *((dtype, width, 4, 1) for dtype in (torch.float32, torch.float16) for width in (64, 128)),
]


@on_gpu
@pytest.mark.parametrize(("dtype", "width", "heads", "groups"), KINDS, ids=str)
@pytest.mark.parametrize("window", [0, 1, 16, 10_000])
@pytest.mark.parametrize("chunk", [1, 4, 8, 16, 32])
def test_sweep(dtype, width, heads, groups, window, chunk):
    for summaries, length, unfinished in ((1, 1024, True), (2, 700, False), (1, 3, True)):
        documents = summaries == 2 and groups == 1
        assert_right(
            Case(2, heads, groups, length, width, chunk, summaries, window, documents, unfinished, dtype)
        )


@on_gpu
def test_random_shapes_for_two_minutes():
    generator = torch.Generator().manual_seed(int(time.time()))
    stop = time.monotonic() + 120

    def draw(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    while time.monotonic() < stop:
        group, groups = draw(1, 2, 3, 4, 6, 8, 12), draw(1, 2)
        case = Case(
            B=draw(1, 2, 3),
            H=group * groups,
            G=groups,
            T=int(torch.randint(1, draw(40, 400, 1500), (1,), generator=generator)),
            D=draw(16, 32, 64, 128),
            chunk=draw(1, 3, 4, 8, 16, 32, 50),
            summaries=draw(1, 2, 3),
            window=draw(0, 1, 2, 7, 40, 10_000),
            documents=draw(True, False),
            unfinished=draw(True, False),
            dtype=draw(torch.float32, torch.bfloat16, torch.float16),
        )
        seed = int(torch.randint(2**31, (1,), generator=generator))
        try:
            assert_right(case, seed)
        except AssertionError as error:
            raise AssertionError(f"{case} seed {seed}") from error


@on_gpu
def test_more_than_2_to_the_31_elements():
    """Two sequences of which the second ends past 2^31 elements; it must equal itself run alone."""
    length, heads, chunk = 2**30 // (128 * 16) + 8192, 16, 32
    query = torch.randn(2, length, heads, 128, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    key = torch.randn(2, length, 1, 128, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    of_summary = (x[:, :, : length // chunk].contiguous() for x in (query, key, key))
    text, summary = Rows(query, key, key), Rows(*of_summary)
    grads = torch.randn_like(query), torch.randn_like(summary.query_BHTD)
    pattern = Pattern(chunk, 1, 1, 128**-0.5)
    both = flat(*run(text, summary, pattern, grads))
    text, summary = (Rows(*(x[1:].contiguous() for x in rows)) for rows in (text, summary))
    alone = flat(*run(text, summary, pattern, [x[1:].contiguous() for x in grads]))
    assert query.numel() > 2**31
    assert all(torch.equal(mine[1:], theirs) for mine, theirs in zip(both, alone, strict=True))


@on_gpu
def test_in_a_cuda_graph():
    text, summary, pattern, grads = problem(CASES[1])
    plain = flat(*run(text, summary, pattern, grads))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = flat(*run(text, summary, pattern, grads))
    for x in captured:
        x.fill_(torch.nan)
    graph.replay()
    for mine, theirs in zip(captured, plain, strict=True):
        assert torch.equal(mine, theirs)


def test_results_have_names():
    text, summary, pattern, grads = problem(Case(1, 1, 1, 5, 16, 8, 1, 0))
    forward, gradients = run(text, summary, pattern, grads)
    assert isinstance(forward, Forward)
    assert isinstance(gradients, Gradients)
