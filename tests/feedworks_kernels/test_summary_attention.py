"""summary_attention: every form against the paper's definition in fp64, values, gradients and properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from feedworks_kernels import Rows, first_chunks, summary_attention
from feedworks_kernels.summary_attention import eager_short, eager_text
from feedworks_kernels.summary_attention.exactness import Case, exactness, sweep
from feedworks_kernels.testing import TOLERANCE, assert_close, forced, poisoned_memory, random_rows

FORMS = ("reference", "short", "blocks")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """The reference and both ways of the PyTorch form; blocks are small, so that few rows make many."""
    monkeypatch.setattr(eager_short, "_LONGEST", -1 if request.param == "blocks" else 10**9)
    if request.param == "blocks":
        monkeypatch.setattr(eager_text, "_ROWS", 32)
        monkeypatch.setattr(eager_text, "_COLUMNS", 48)
    with forced("reference" if request.param == "reference" else "eager"):
        yield request.param


def drawn(seed, *sizes, **options):
    return random_rows(torch.Generator().manual_seed(seed), sizes, **options)


def leaves(text, summary):
    return [x.detach().requires_grad_() for x in (*text, *summary)]


def worst(cases, dtype):
    errors = {}
    for case in cases:
        for name, error in exactness(case, dtype).items():
            errors[name] = max(errors.get(name, (0.0, None)), (error, str(case)))
    return errors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_over_the_sweep(form, dtype):
    for name, (error, case) in worst(sweep((3, 77)), dtype).items():
        assert error <= TOLERANCE[dtype], (name, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_with_blocks_of_full_size(dtype, monkeypatch):
    monkeypatch.setattr(eager_short, "_LONGEST", -1)
    cases = [
        Case(1101, 8, 128, heads=(1, 1)),
        Case(300, 8, 1, summaries=2, heads=(8, 1), width=128),
        Case(400, 1, 128, heads=(1, 1), num_sequences=2, documents=True),
        Case(630, 300, 0, heads=(1, 1), unfinished=False),
    ]
    for name, (error, case) in worst(cases, dtype).items():
        assert error <= TOLERANCE[dtype], (name, case)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_over_long_texts(dtype):
    cases = [
        *sweep((133,)),
        *sweep((1030,))[::5],
        Case(4500, 32, 128, heads=(1, 1), width=128),
        Case(2500, 8, None, heads=(1, 1)),
    ]
    for name, (error, case) in worst(cases, dtype).items():
        assert error <= TOLERANCE[dtype], (name, case)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_text=st.integers(1, 150),
    chunk=st.integers(1, 40),
    window=st.one_of(st.none(), st.integers(0, 12)),
    summaries=st.integers(1, 3),
    groups=st.integers(1, 3),
    group=st.integers(1, 4),
    width=st.integers(1, 20),
    num_sequences=st.integers(1, 3),
    unfinished=st.booleans(),
    way=st.sampled_from([-1, 10**9]),
)
def test_exact_at_random_sizes(
    seed, num_text, chunk, window, summaries, groups, group, width, num_sequences, unfinished, way
):
    heads = (groups * group, groups)
    case = Case(num_text, chunk, window, summaries, heads, width, num_sequences, unfinished, seed % 2 == 0)
    before = eager_short._LONGEST
    eager_short._LONGEST = way
    try:
        errors = exactness(case, torch.float64, seed=seed)
    finally:
        eager_short._LONGEST = before
    assert max(errors.values()) <= TOLERANCE[torch.float64], errors


@pytest.mark.parametrize("unbounded", [None, 7, 2**31 - 1])
def test_an_unbounded_window_is_causal_attention(form, unbounded):
    text, summary = drawn(0, 2, 4, 2, 63, 16, chunk=8, dtype=torch.float64)
    inputs = leaves(text, summary)
    got = summary_attention(Rows(*inputs[:3]), Rows(*inputs[3:]), chunk=8, window=unbounded)
    assert_close(
        got.text_BHTD, F.scaled_dot_product_attention(*text, is_causal=True, enable_gqa=True), torch.float64
    )
    grads = torch.autograd.grad(got.text_BHTD.square().sum(), inputs)
    assert all((x == 0).all() for x in grads[3:])
    assert all((x != 0).any() for x in grads[:3])


def test_a_window_of_zero_and_chunks_of_one(form):
    text, summary = drawn(1, 1, 1, 1, 5, 4, chunk=1, dtype=torch.float64)
    got = summary_attention(text, summary, chunk=1, window=0).text_BHTD[0, 0]
    for row in range(5):
        keys = torch.cat([summary.key_BGTD[0, 0, :row], text.key_BGTD[0, 0, row : row + 1]])
        values = torch.cat([summary.value_BGTD[0, 0, :row], text.value_BGTD[0, 0, row : row + 1]])
        weights = torch.softmax(keys @ text.query_BHTD[0, 0, row] / 2, dim=0)
        assert_close(got[row], weights @ values, torch.float64)


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0])
def test_scale(form, scale):
    text, summary = drawn(11, 1, 2, 1, 41, 8, chunk=4, dtype=torch.float64)
    got = summary_attention(text, summary, chunk=4, window=2, scale=scale)
    scaled = [Rows(rows.query_BHTD * scale * 8**0.5, *rows[1:]) for rows in (text, summary)]
    for mine, theirs in zip(got, summary_attention(*scaled, chunk=4, window=2), strict=True):
        assert_close(mine, theirs, torch.float64)


@pytest.mark.parametrize("row", [0, 17, 40])
def test_nothing_reads_the_future(form, row):
    text, summary = drawn(2, 1, 2, 1, 41, 8, chunk=4, dtype=torch.float64)
    before = summary_attention(text, summary, chunk=4, window=2)
    changed = Rows(*(x.clone() for x in text))
    for x in changed:
        x[:, :, row] += 1
    after = summary_attention(changed, summary, chunk=4, window=2)
    chunk = row // 4
    assert torch.equal(before.text_BHTD[:, :, :row], after.text_BHTD[:, :, :row])
    assert (before.text_BHTD[:, :, row] != after.text_BHTD[:, :, row]).all()
    # Past the window a chunk is read through its summaries alone, and these did not change.
    assert torch.equal(before.text_BHTD[:, :, 4 * (chunk + 3) :], after.text_BHTD[:, :, 4 * (chunk + 3) :])
    differs = (before.summary_BHSD != after.summary_BHSD).any(-1).flatten(0, 1).any(0)
    assert differs.nonzero().flatten().tolist() == [chunk]
    resummed = Rows(*(x.clone() for x in summary))
    for x in resummed:
        x[:, :, chunk] += 1
    again = summary_attention(text, resummed, chunk=4, window=2)
    differs = (before.text_BHTD != again.text_BHTD).any(-1).flatten(0, 1).any(0)
    assert differs.nonzero().flatten().tolist() == list(range(min(41, 4 * (chunk + 3)), 41))


@pytest.mark.parametrize("summaries", [1, 2])
def test_packed_documents_equal_separate_calls(form, summaries):
    chunk, lengths = 4, [12, 4, 21]
    text, summary = drawn(3, 2, 2, 1, sum(lengths), 8, chunk=chunk, summaries=summaries, dtype=torch.float64)
    document = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(2, -1)
    packed = summary_attention(
        text,
        summary,
        chunk=chunk,
        window=1,
        summaries=summaries,
        first_chunk_BC=first_chunks(document, chunk),
    )
    start, start_summary = 0, 0
    for length in lengths:
        stop, stop_summary = start + length, start_summary + -(-length // chunk) * summaries
        alone = summary_attention(
            Rows(*(x[:, :, start:stop] for x in text)),
            Rows(*(x[:, :, start_summary:stop_summary] for x in summary)),
            chunk=chunk,
            window=1,
            summaries=summaries,
        )
        assert_close(packed.text_BHTD[:, :, start:stop], alone.text_BHTD, torch.float64)
        assert_close(packed.summary_BHSD[:, :, start_summary:stop_summary], alone.summary_BHSD, torch.float64)
        start, start_summary = stop, stop_summary


@pytest.mark.parametrize("size", [30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_scores(form, size, dtype):
    """Sums of weights without a maximum would overflow here (and vanish: products of both signs)."""
    text, summary = drawn(4, 1, 2, 1, 70, 16, chunk=4, dtype=dtype)
    inputs = leaves(Rows(text.query_BHTD * size, *text[1:]), Rows(summary.query_BHTD * size, *summary[1:]))
    got = summary_attention(Rows(*inputs[:3]), Rows(*inputs[3:]), chunk=4, window=2)
    with forced("reference"):
        doubles = [x.detach().double().requires_grad_() for x in inputs]
        right = summary_attention(Rows(*doubles[:3]), Rows(*doubles[3:]), chunk=4, window=2)
    # A score of 1e5 has 1e-2 of rounding in fp32: rows with a clear winner are compared.
    clear = 1e-4 * size if dtype == torch.float32 else 2e-2
    differs = [(x - y).abs().amax(-1) > clear for x, y in zip(got, right, strict=True)]
    assert max(float(x.double().mean()) for x in differs) <= 0.02
    for x in torch.autograd.grad([x.sum() for x in got], inputs):
        assert x.isfinite().all()


def test_gradcheck(form):
    text, summary = drawn(5, 2, 2, 1, 7, 3, chunk=2, summaries=2, dtype=torch.float64)
    first = torch.tensor([[0, 0, 0, 0], [0, 0, 2, 2]], dtype=torch.int32)

    def run(*inputs):
        return summary_attention(
            Rows(*inputs[:3]),
            Rows(*inputs[3:]),
            chunk=2,
            window=1,
            summaries=2,
            first_chunk_BC=first,
            scale=0.7,
        )

    assert torch.autograd.gradcheck(run, leaves(text, summary))


@pytest.mark.parametrize("without", range(6))
def test_differentiates_what_is_asked_for(form, without):
    text, summary = drawn(6, 1, 2, 1, 9, 4, chunk=2, dtype=torch.float64)
    inputs = leaves(text, summary)
    inputs[without].requires_grad_(False)
    asked = [x for x in inputs if x.requires_grad]
    got = summary_attention(Rows(*inputs[:3]), Rows(*inputs[3:]), chunk=2, window=1)
    found = torch.autograd.grad(got.text_BHTD.sum() + got.summary_BHSD.square().sum(), asked)
    whole = leaves(text, summary)
    right = summary_attention(Rows(*whole[:3]), Rows(*whole[3:]), chunk=2, window=1)
    expected = torch.autograd.grad(right.text_BHTD.sum() + right.summary_BHSD.square().sum(), whole)
    for mine, theirs in zip(found, expected[:without] + expected[without + 1 :], strict=True):
        assert_close(mine, theirs, torch.float64)


@pytest.mark.parametrize("unfinished", [False, True])
def test_every_place_is_written(form, unfinished):
    text, summary = drawn(7, 2, 4, 2, 75, 8, chunk=8, summaries=2, unfinished=unfinished)
    inputs = leaves(text, summary)
    with poisoned_memory():
        got = summary_attention(Rows(*inputs[:3]), Rows(*inputs[3:]), chunk=8, window=1, summaries=2)
        grads = torch.autograd.grad([x.sum() for x in got], inputs)
    assert all(x.isfinite().all() for x in (*got, *grads))


def test_any_strides(form):
    text, summary = drawn(8, 2, 4, 2, 75, 8, chunk=8)
    expected = summary_attention(text, summary, chunk=8, window=2)

    def strewn(rows):
        projected = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in rows]  # As a model's views.
        wide = torch.zeros(*rows.value_BGTD.shape[:3], 24)[..., ::3]
        return Rows(projected[0], projected[1].flip(2).flip(2), wide.copy_(rows.value_BGTD))

    inputs = [x.detach().requires_grad_() for x in (*strewn(text), *strewn(summary))]
    got = summary_attention(Rows(*inputs[:3]), Rows(*inputs[3:]), chunk=8, window=2)
    assert got.text_BHTD.stride() == inputs[0].stride()
    plain = leaves(text, summary)
    expected = summary_attention(Rows(*plain[:3]), Rows(*plain[3:]), chunk=8, window=2)
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine, theirs, torch.float32)
    right = torch.autograd.grad([x.sum() for x in expected], plain)
    for mine, theirs in zip(torch.autograd.grad([x.sum() for x in got], inputs), right, strict=True):
        assert_close(mine, theirs, torch.float32)


@pytest.mark.parametrize(("num_sequences", "num_text"), [(0, 9), (2, 0), (0, 0), (1, 1)])
def test_empty(form, num_sequences, num_text):
    text, summary = drawn(9, num_sequences, 4, 2, num_text, 8, chunk=4, unfinished=False)
    inputs = leaves(text, summary)
    got = summary_attention(Rows(*inputs[:3]), Rows(*inputs[3:]), chunk=4, window=1)
    assert got.text_BHTD.shape == text.query_BHTD.shape
    assert got.summary_BHSD.shape == summary.query_BHTD.shape
    grads = torch.autograd.grad([x.sum() for x in got], inputs)
    assert [x.shape for x in grads] == [x.shape for x in inputs]


def test_the_gates_bite():
    """One chunk more or less in the window, or a softmax over the two parts apart, is seen at once."""
    text, summary = drawn(10, 1, 2, 1, 80, 8, chunk=4)
    right = summary_attention(text, summary, chunk=4, window=3)
    for window in (2, 4):
        wrong = summary_attention(text, summary, chunk=4, window=window)
        with pytest.raises(AssertionError):
            assert_close(wrong.text_BHTD, right.text_BHTD, torch.bfloat16)
    with pytest.raises(AssertionError):
        assert_close(right.text_BHTD * 1.0001, right.text_BHTD, torch.float32)
