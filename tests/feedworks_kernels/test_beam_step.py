"""beam_step: hand-worked steps, every form against the definition, ties, impossible and broken inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks_kernels import beam_step
from feedworks_kernels.testing import assert_close, forced, poisoned_memory, random_level

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
)
def test_eager_equals_reference(seed, num_searches, num_beams, num_codes, width, normalise, scale):
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
        expected = beam_step(logits, score, node, *level, width, normalise)
    with forced("eager"), poisoned_memory():
        got = beam_step(logits, score, node, *level, width, normalise)
    assert_close(got.score_BW, expected.score_BW, torch.float64)
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        assert torch.equal(mine, theirs)


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
        ({"node_BK": torch.zeros(2, 3)}, "node: expected integer"),
        ({"node_BK": torch.full((2, 3), -1)}, "node: a live beam is outside"),
        ({"node_BK": torch.full((2, 3), 1)}, "node: a live beam is outside"),
        ({"child_start": torch.tensor([0])}, "child_start: expected at least 2"),
        ({"child_start": torch.tensor([[0, 2]])}, "child_start: expected int32 or int64"),
        ({"child_code": torch.tensor([0.0, 3.0])}, "child_code: expected int32 or int64"),
        ({"child_code": torch.tensor([0, 4])}, r"child_code: 0 \.\. 4 exceeds the 4 logits"),
        ({"child_code": torch.tensor([-1, 3])}, r"child_code: -1 \.\. 3 exceeds the 4 logits"),
        ({"logits_BKC": torch.zeros(2, 3, 4, device="meta")}, "one device"),
        ({"width": 0}, "width: expected at least 1"),
        ({"normalise": "vocabulary"}, "normalise: expected one of"),
    ],
)
def test_bad_input_is_named(change, message):
    assert beam_step(**valid_arguments()).score_BW.shape == (2, 5)
    with pytest.raises(ValueError, match=message):
        beam_step(**valid_arguments() | change)
