"""summary_attention as an operator of torch: its rules, compiled, exported, bad input, large sizes."""

from __future__ import annotations

import importlib
import io

import pytest
import torch
from torch import library, nn

from feedworks_kernels import Rows, summary_attention
from feedworks_kernels.summary_attention import eager_short, eager_threads
from feedworks_kernels.testing import assert_close, forced, random_rows

registration = importlib.import_module("feedworks_kernels.summary_attention.registration")
BOTH_WAYS = pytest.mark.parametrize("longest", [-1, 10**9], ids=["blocks", "short"])


def rows_of(num_text=21, chunk=4, dtype=torch.float32, summaries=1):
    generator = torch.Generator().manual_seed(0)
    return random_rows(generator, (2, 4, 2, num_text, 8), chunk=chunk, dtype=dtype, summaries=summaries)


@BOTH_WAYS
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_keep_torchs_rules(longest, documents, dtype, monkeypatch):
    monkeypatch.setattr(eager_short, "_LONGEST", longest)
    text, summary = rows_of(dtype=dtype)
    transposed = Rows(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in text))
    first = torch.tensor([[0, 0, 0, 3, 3, 3]] * 2, dtype=torch.int32) if documents else None
    inputs = [x.detach().requires_grad_() for x in (*transposed, *summary)]
    sizes = (first, 4, 1, 1, 0.3)
    # In bf16 the check compares two orders of sums as if they were of fp32.
    options = {"test_utils": ("test_schema", "test_faketensor")} if dtype == torch.bfloat16 else {}
    library.opcheck(registration.summary_attention, (*inputs, *sizes), **options)
    tensors = [x.detach() for x in inputs]
    forward = registration.summary_attention(*tensors, *sizes)
    grads = [torch.ones_like(x) for x in forward[:2]]
    library.opcheck(registration.summary_attention_gradient, (*grads, *tensors, *forward, *sizes), **options)


class Layer(nn.Module):
    """Projections, attention, and the way back: what a model does around the operator."""

    def __init__(self, window):
        super().__init__()
        torch.manual_seed(0)
        self.text, self.summary, self.out = nn.Linear(16, 64), nn.Linear(16, 64), nn.Linear(32, 16)
        self.window = window

    def forward(self, text_BTE, summary_BSE):
        def rows(projected):
            heads = projected.unflatten(-1, (8, 8)).transpose(1, 2)
            return Rows(heads[:, :4], heads[:, 4:6], heads[:, 6:])

        out = summary_attention(
            rows(self.text(text_BTE)), rows(self.summary(summary_BSE)), chunk=4, window=self.window
        )
        return [self.out(x.transpose(1, 2).flatten(2)) for x in out]


@pytest.mark.parametrize("window", [1, None])
def test_compiled(window):
    module = Layer(window)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for num_text in (21, 40):
        text = torch.randn(2, num_text, 16, requires_grad=True)
        summary = torch.randn(2, -(-num_text // 4), 16, requires_grad=True)
        inputs = (text, summary, *module.parameters())
        expected = torch.autograd.grad(sum(x.square().sum() for x in module(text, summary)), inputs)
        got = torch.autograd.grad(sum(x.square().sum() for x in compiled(text, summary)), inputs)
        for mine, theirs in zip(got, expected, strict=True):
            assert_close(mine, theirs, torch.float32)


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("window", [1, None])
def test_export_keeps_one_node(strict, window):
    batch, rows, summaries = (torch.export.Dim(name) for name in ("batch", "rows", "summaries"))
    module = Layer(window).eval()
    inputs = (torch.randn(2, 21, 16), torch.randn(2, 6, 16))
    shapes = ({0: batch, 1: rows}, {0: batch, 1: summaries})
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=strict)
        decomposed = program.run_decompositions({})
    names = [str(node.target) for node in decomposed.graph.nodes if node.op == "call_function"]
    assert names.count("feedworks.summary_attention.default") == 1
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    many = (torch.randn(3, 300, 16), torch.randn(3, 75, 16))
    with torch.no_grad():
        for mine, theirs in zip(loaded(*many), module(*many), strict=True):
            assert_close(mine, theirs, torch.float32)
        with pytest.raises(ValueError, match="summary: expected 75 rows"):
            loaded(many[0], many[1][:, :74])


def changed(rows, index, tensor):
    return Rows(*(tensor if place == index else x for place, x in enumerate(rows)))


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, "chunk: expected a whole number from 1 to 2.31 - 1, got 0"),
        ({"chunk": 4.0}, "chunk: expected a whole number"),
        ({"chunk": True}, "chunk: expected a whole number"),
        ({"chunk": 2**31}, "chunk: expected a whole number"),
        ({"chunk": 8}, "summary: expected 3, or 2 without the unfinished chunk, rows .1 for each chunk of 8"),
        ({"window": -1}, "window: expected a whole number from 0 to 2.31 - 1 or None, got -1"),
        ({"summaries": 0}, "summaries: expected a whole number from 1"),
        ({"summaries": 2}, "summary: expected 12, or 10 without the unfinished chunk, rows"),
        ({"first_chunk_BC": zeros(2, 5).int()}, r"first_chunk: expected int32 \(B, C\) = \(2, 6\), got"),
        ({"first_chunk_BC": zeros(2, 6).long()}, "first_chunk: expected int32"),
        ({"first_chunk_BC": zeros(2, 6, device="meta").int()}, "first_chunk lies on meta"),
        ({"first_chunk_BC": torch.tensor([[0] * 6, [0, 2, 2, 3, 3, 3]]).int()}, r"first_chunk\[1, 1\] = 2"),
        ({"first_chunk_BC": torch.tensor([[0] * 6, [-1] * 6]).int()}, r"first_chunk\[1, 0\] = -1: expected"),
        ({"first_chunk_BC": torch.tensor([[0, 1, 0, 0, 0, 0]] * 2).int()}, r"first_chunk\[0, 2\] = 0"),
        ({"first_chunk_BC": torch.tensor([[0, 0, 1, 1, 1, 1]] * 2).int()}, r"first_chunk\[0, 2\] = 1"),
        ({"scale": float("nan")}, "scale: expected a finite number"),
        ({"text": (0, zeros(2, 4, 21))}, r"text.query: expected float \(B, H, T, D\) with D of 1 or more"),
        ({"text": (0, zeros(2, 4, 21, 0))}, "text.query: expected float"),
        ({"text": (0, zeros(2, 4, 21, 8).long())}, "text.query: expected float"),
        ({"text": (0, zeros(2, 3, 21, 8))}, "G a divisor of the query's 3 heads"),
        ({"text": (1, zeros(2, 0, 21, 8))}, "G a divisor of the query's 4 heads"),
        ({"text": (1, zeros(2, 2, 20, 8))}, r"text.key: expected torch.float32 \(2, 2, 21, 8\)"),
        ({"text": (2, zeros(2, 2, 21, 8).double())}, "text.value: expected torch.float32"),
        ({"text": (2, zeros(2, 2, 21, 8, device="meta"))}, "text.value lies on meta and text.query on cpu"),
        ({"summary": (0, zeros(2, 6, 8))}, "summary.query: expected torch.float32"),
        ({"summary": (0, zeros(2, 4, 4, 8))}, r"summary.key: expected torch.float32 \(2, 2, 4, 8\)"),
        ({"summary": (1, zeros(2, 4, 6, 8))}, r"summary.key: expected torch.float32 \(2, 2, 6, 8\)"),
        ({"summary": (2, zeros(2, 2, 6, 7))}, "summary.value: expected torch.float32"),
        ({"summary": (2, zeros(2, 2, 6, 8).half())}, "summary.value: expected torch.float32"),
    ],
)
@pytest.mark.parametrize("form", ["reference", "eager"])
def test_bad_input_is_named(options, message, form):
    text, summary = rows_of()
    arguments = {"text": text, "summary": summary, "chunk": 4, "window": 1}
    with forced(form):
        assert summary_attention(**arguments).text_BHTD.shape == (2, 4, 21, 8)
        for name in ("text", "summary"):
            if name in options:
                options = {name: changed(arguments[name], *options[name])}
        with pytest.raises(ValueError, match=message):
            summary_attention(**arguments | options)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_forward_mode_derivatives_are_refused():
    """torch itself would take them for zero."""
    text, summary = rows_of()

    def attend(query):
        return summary_attention(text._replace(query_BHTD=query), summary, chunk=4, window=1).text_BHTD

    with pytest.raises(ValueError, match="no forward-mode derivative"):
        torch.func.jvp(attend, (text.query_BHTD,), (text.query_BHTD,))


def test_unfinished_chunks_may_have_summaries_or_none():
    text, summary = rows_of()
    with_summaries = summary_attention(text, summary, chunk=4, window=1)
    without = summary_attention(text, Rows(*(x[:, :, :5] for x in summary)), chunk=4, window=1)
    assert_close(with_summaries.text_BHTD, without.text_BHTD, torch.float32)
    assert_close(with_summaries.summary_BHSD[:, :, :5], without.summary_BHSD, torch.float32)


@pytest.mark.slow
def test_more_than_2_to_the_31_numbers():
    """Heads that share memory: 2^31 + 2^19 numbers in the output."""
    generator = torch.Generator().manual_seed(0)
    num_heads = 2**15 + 8
    text, summary = random_rows(generator, (1, 1, 1, 1024, 64), chunk=8, dtype=torch.bfloat16)

    def wide(rows):
        return Rows(rows.query_BHTD.expand(-1, num_heads, -1, -1), *rows[1:])

    last = Rows(text.query_BHTD.flip(2), *text[1:])
    expected = summary_attention(last, summary, chunk=8, window=1)
    query = wide(text).query_BHTD.contiguous()
    query[:, -1] = last.query_BHTD[:, 0]
    assert query.numel() > 2**31
    got = summary_attention(Rows(query, *text[1:]), wide(summary), chunk=8, window=1)
    assert_close(got.text_BHTD[:, -1], expected.text_BHTD[:, 0], torch.bfloat16)
    assert_close(got.summary_BHSD[:, -1], expected.summary_BHSD[:, 0], torch.bfloat16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_modes_change_nothing(mode, threads, monkeypatch):
    monkeypatch.setattr(eager_short, "_LONGEST", -1)
    text, summary = rows_of(num_text=700)
    inputs = [x.detach().requires_grad_() for x in (*text, *summary)]
    before = torch.get_num_threads()
    found = {}
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            with mode():
                alone = summary_attention(text, summary, chunk=4, window=3)
            got = summary_attention(Rows(*inputs[:3]), Rows(*inputs[3:]), chunk=4, window=3)
            found[number] = (*alone, *torch.autograd.grad([x.square().sum() for x in got], inputs))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    for mine, theirs in zip(found[1], found[threads], strict=True):
        assert_close(mine, theirs, torch.float32)


def test_a_thread_that_fails_is_heard():
    def fail(task):
        raise ZeroDivisionError(task)

    with pytest.raises(ZeroDivisionError, match="0"):
        list(eager_threads.run(fail, range(4), 2))


@BOTH_WAYS
def test_autocast_changes_nothing(longest, monkeypatch):
    monkeypatch.setattr(eager_short, "_LONGEST", longest)
    text, summary = rows_of()
    expected = summary_attention(text, summary, chunk=4, window=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = summary_attention(text, summary, chunk=4, window=1)
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
