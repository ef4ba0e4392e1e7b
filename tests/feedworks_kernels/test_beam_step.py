"""beam_step: hand-worked steps, every form against the definition, ties, impossible and broken inputs."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import library

from feedworks_kernels import beam_step
from feedworks_kernels.testing import assert_close, forced, poisoned_memory, random_level

# The package's attribute `beam_step` is the function.
eager = importlib.import_module("feedworks_kernels.beam_step.eager")
best = importlib.import_module("feedworks_kernels.beam_step.best")
registration = importlib.import_module("feedworks_kernels.beam_step.registration")
FORMS = ("reference", "eager")
NORMALISE = ("codebook", "children")


@pytest.mark.parametrize("form", FORMS)
def test_hand_worked_step(form):
    # Node 0 has codes {0, 2}, node 1 has code {1}. softmax(log [1, 2, 5]) = [1, 2, 5] / 8.
    logits = torch.log(torch.tensor([[[1.0, 2.0, 5.0], [2.0, 1.0, 1.0]]], dtype=torch.float64))
    score = torch.log(torch.tensor([[0.5, 0.4]], dtype=torch.float64))
    level = (torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]))
    node = torch.tensor([[0, 1]])
    with forced(form):
        step = beam_step(logits, score, node, *level, 4)
        narrow = beam_step(logits, score, node, *level, 2, "children")
    torch.testing.assert_close(step.score_BW.exp(), torch.tensor([[0.3125, 0.1, 0.0625, 0.0]]).double())
    assert step.parent_BW.tolist() == [[0, 1, 0, 0]]
    assert step.code_BW.tolist() == [[2, 1, 0, 0]]
    assert step.node_BW.tolist() == [[1, 2, 0, 0]]
    torch.testing.assert_close(narrow.score_BW.exp(), torch.tensor([[0.5 * 5 / 6, 0.4]]).double())


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_searches=st.integers(0, 4),
    num_beams=st.integers(0, 7),
    num_codes=st.sampled_from([1, 3, 63, 100, 500]),
    width=st.sampled_from([1, 2, 7, 64, 256]),
    normalise=st.sampled_from(NORMALISE),
    scale=st.sampled_from([1.0, 30.0, 300.0]),
    per_beam=st.sampled_from([None, 1, 3, 64]),
)
def test_eager_equals_reference(seed, num_searches, num_beams, num_codes, width, normalise, scale, per_beam):
    generator = torch.Generator().manual_seed(seed)
    level = random_level(generator, 5, num_codes)
    logits = scale * torch.randn(num_searches, num_beams, num_codes, generator=generator).double()
    logits[torch.rand(logits.shape, generator=generator) < 0.1] = -torch.inf
    logits[torch.rand(logits.shape[:2], generator=generator) < 0.1] = -torch.inf
    score = -torch.rand(num_searches, num_beams, generator=generator).double()
    node = torch.randint(0, 5, score.shape, generator=generator)
    empty = torch.rand(score.shape, generator=generator) < 0.3
    score[empty], logits[empty], node[empty] = -torch.inf, torch.nan, 10**9  # none of them is read
    with forced("reference"):
        expected = beam_step(logits, score, node, *level, width, normalise, per_beam=per_beam)
    with forced("eager"), poisoned_memory():
        got = beam_step(logits, score, node, *level, width, normalise, per_beam=per_beam)
    assert_close(got.score_BW, expected.score_BW, torch.float64)
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        assert torch.equal(mine, theirs)


@pytest.fixture(params=[1, 2])
def threads(request):
    """Number of threads of torch; the normaliser takes another way with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("steps", [0, 8], ids=["distinct", "equal"])
@pytest.mark.parametrize("share", [1.0, 0.2], ids=["even", "skewed"])
def test_ways_of_large_tables_equal_the_reference(monkeypatch, threads, normalise, steps, share):
    monkeypatch.setattr(eager, "_FEW_LOGITS", 0)
    monkeypatch.setattr(eager, "_BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(eager, "_FEW_PLACES", 16)
    monkeypatch.setattr(best, "_FEW_PLACES", 16)
    generator = torch.Generator().manual_seed(5)
    for num_codes in (64, 100, 333):
        counts = torch.randint(1, num_codes + 1, (30,), generator=generator)
        counts[torch.rand(30, generator=generator) > share] = 2
        counts[7] = num_codes
        codes = [torch.randperm(num_codes, generator=generator)[:n].sort().values for n in counts.tolist()]
        level = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int(), torch.cat(codes).int()
        logits = 3 * torch.randn(2, 9, num_codes, generator=generator)
        if steps:
            logits = (logits * steps / 16).round() * 16 / steps
        score = -torch.rand(2, 9, generator=generator).mul(4).round()
        score[1, 3] = -torch.inf
        node = torch.randint(0, 30, score.shape, generator=generator)
        node[0, :2], node[1, 3] = torch.tensor([29, 7]), 10**6
        for width in (1, 5, 20, 60):
            with forced("reference"):
                expected = beam_step(logits.double(), score, node, *level, width, normalise)
            got = beam_step(logits.double(), score, node, *level, width, normalise)
            assert_close(got.score_BW, expected.score_BW, torch.float64)
            for mine, theirs in zip(got[1:], expected[1:], strict=True):
                differ = mine != theirs
                # Children of different beams are equal only up to rounding: these may change places.
                near = (got.score_BW.unsqueeze(2) - got.score_BW.unsqueeze(1)).abs().add(
                    torch.eye(width)
                ) < 1e-12
                assert not (differ & ~near.any(dim=2)).any() or width == 1


@pytest.mark.parametrize("num_beams", [1, 300])
@pytest.mark.parametrize("normalise", NORMALISE)
def test_equal_scores_stand_in_order_in_a_large_table(threads, num_beams, normalise):
    generator = torch.Generator().manual_seed(6)
    num_codes = 4096 // min(num_beams, 16)
    level = torch.tensor([0, num_codes]), torch.arange(num_codes)
    row_C = torch.randint(0, 3, (num_codes,), generator=generator).float()
    logits = row_C.expand(2, num_beams, num_codes).contiguous()
    step = beam_step(
        logits, torch.zeros(2, num_beams), torch.zeros(2, num_beams).long(), *level, 200, normalise
    )
    order = (-row_C.repeat(num_beams)).sort(stable=True).indices[:200]
    assert step.parent_BW.tolist() == [(order // num_codes).tolist()] * 2
    assert step.code_BW.tolist() == [(order % num_codes).tolist()] * 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_codes", [6, 700])
def test_equal_scores_stand_in_order_of_parent_then_code(form, num_codes):
    start = torch.tensor([0, num_codes])
    code = torch.arange(num_codes)
    arguments = torch.zeros(2, 3, num_codes), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    with forced(form):
        step = beam_step(*arguments, start, code, num_codes + 2)
    assert step.parent_BW.tolist() == [[0] * num_codes + [1, 1]] * 2
    assert step.code_BW.tolist() == [[*range(num_codes), 0, 1]] * 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_beam_places_no_more_children_than_asked_for(form, normalise):
    logits = torch.tensor([[[3.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])
    level, node = (torch.tensor([0, 4]), torch.arange(4)), torch.zeros(1, 2, dtype=torch.int64)
    with forced(form):
        step = beam_step(logits, torch.zeros(1, 2), node, *level, 6, normalise, per_beam=2)
    assert step.parent_BW.tolist() == [[0, 1, 1, 0, 0, 0]]
    assert step.code_BW.tolist() == [[0, 0, 1, 1, 0, 0]]
    assert step.score_BW.isfinite().sum() == 4


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated:FutureWarning")  # torch's own
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("per_beam", [None, 3])
def test_one_node_of_torch(normalise, per_beam):
    generator = torch.Generator().manual_seed(8)
    level = random_level(generator, 8, 40)
    arguments = torch.randn(2, 4, 40, generator=generator), -torch.rand(2, 4), torch.arange(8).view(2, 4)
    library.opcheck(registration.beam_step, (*arguments, *level, 9, normalise, per_beam))

    def run(logits, score, node):
        return beam_step(logits, score, node, *level, 9, normalise, per_beam=per_beam)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(*arguments), run(*arguments), strict=True):
        assert torch.equal(got, expected)

    class Step(torch.nn.Module):
        def forward(self, logits, score, node):
            return run(logits, score, node)

    program = torch.export.export(Step(), arguments).run_decompositions({})
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("feedworks.beam_step.default") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalise", NORMALISE)
def test_lower_precision_is_computed_in_fp32(dtype, normalise):
    generator = torch.Generator().manual_seed(3)
    level = random_level(generator, 8, 300)
    logits = (10 * torch.randn(3, 8, 300, generator=generator)).to(dtype)
    score, node = -torch.rand(3, 8, generator=generator), torch.arange(8).expand(3, 8)
    with forced("reference"):
        expected = beam_step(logits.double(), score.double(), node, *level, 64, normalise)
    got = beam_step(logits, score, node, *level, 64, normalise)
    assert got.score_BW.dtype == torch.float32
    assert_close(got.score_BW, expected.score_BW, torch.float32)


def test_strides_and_batch_do_not_matter():
    generator = torch.Generator().manual_seed(4)
    level = random_level(generator, 8, 100)
    wide = torch.randn(100, 5, 2, 8, generator=generator)
    logits, score = wide[:, 2].permute(1, 2, 0), -torch.rand(8, 2, generator=generator).T
    node = torch.randint(0, 8, (2, 16), generator=generator)[:, ::2]
    together = beam_step(logits, score, node, *level, 300)
    dense = beam_step(logits.contiguous(), score.contiguous(), node.contiguous(), *level, 300)
    for got, expected in zip(together, dense, strict=True):
        assert torch.equal(got, expected)
    for b in range(2):
        alone = beam_step(logits[b : b + 1], score[b : b + 1], node[b : b + 1], *level, 300)
        for got, expected in zip(alone, together, strict=True):
            assert torch.equal(got[0], expected[b])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_inf_are_refused(form, normalise, value):
    logits = torch.zeros(1, 2, 4)
    logits[0, 1, 2] = value
    level = torch.tensor([0, 4]), torch.arange(4)
    score, node = torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int64)
    with forced(form):
        with pytest.raises(ValueError, match=r"NaN or \+inf"):
            beam_step(logits, score, node, *level, 2, normalise)
        score[0, 1] = -torch.inf  # an empty beam is not looked at
        assert beam_step(logits, score, node, *level, 2, normalise).parent_BW.tolist() == [[0, 0]]


def valid_arguments():
    return {
        "logits_BKC": torch.zeros(2, 3, 4),
        "score_BK": torch.zeros(2, 3),
        "node_BK": torch.zeros(2, 3, dtype=torch.int64),
        "child_start": torch.tensor([0, 2]),
        "child_code": torch.tensor([0, 3]),
        "width": 5,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits_BKC": torch.zeros(3, 4)}, "logits: expected float"),
        ({"logits_BKC": torch.zeros(2, 3, 4, dtype=torch.int64)}, "logits: expected float"),
        ({"logits_BKC": torch.zeros(2, 3, 0)}, "logits: expected float"),
        ({"score_BK": torch.zeros(2, 2)}, r"score: expected float \(2, 3\)"),
        ({"score_BK": torch.zeros(2, 3, dtype=torch.int64)}, "score: expected float"),
        ({"node_BK": torch.zeros(2, 3)}, "node: expected int32 or int64"),
        ({"node_BK": torch.full((2, 3), -1)}, "node: a live beam is outside"),
        ({"node_BK": torch.full((2, 3), 1)}, "node: a live beam is outside"),
        ({"child_start": torch.tensor([0])}, "child_start: expected at least 2"),
        ({"child_start": torch.tensor([[0, 2]])}, "child_start: expected int32 or int64"),
        ({"child_code": torch.tensor([0.0, 3.0])}, "child_code: expected int32 or int64"),
        ({"child_code": torch.tensor([0, 4])}, r"child_code: 0 \.\. 4 exceeds the 4 logits"),
        ({"child_code": torch.tensor([-1, 3])}, r"child_code: -1 \.\. 3 exceeds the 4 logits"),
        ({"child_start": torch.tensor([0, 3])}, "child_start: a node's children end at 3, child_code at 2"),
        ({"logits_BKC": torch.zeros(2, 3, 4, device="meta")}, "one device"),
        ({"width": 0}, "width: expected at least 1"),
        ({"width": 2.0}, "width: expected at least 1"),
        ({"width": True}, "width: expected at least 1"),
        ({"per_beam": 1.5}, "per_beam: expected at least 1 or None"),
        ({"node_BK": torch.zeros(2, 3, dtype=torch.bool)}, "node: expected int32 or int64"),
        ({"child_start": torch.tensor([-1, 1])}, "child_start: a node's children start at -1"),
        ({"child_start": torch.tensor([2, 0])}, "child_start: falls"),
        ({"score_BK": torch.full((2, 3), torch.nan)}, "score: a live beam's is NaN"),
        ({"per_beam": 0}, "per_beam: expected at least 1 or None"),
        ({"normalise": "vocabulary"}, "normalise: expected one of"),
    ],
)
def test_bad_input_is_named(change, message):
    assert beam_step(**valid_arguments()).score_BW.shape == (2, 5)
    with pytest.raises(ValueError, match=message):
        beam_step(**valid_arguments() | change)
