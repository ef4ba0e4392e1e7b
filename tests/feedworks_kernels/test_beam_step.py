"""beam_step: hand-worked steps, exhaustive search, every form against the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks_kernels import beam_step
from feedworks_kernels._dispatch import VARIABLE

NORMALISE = ("codebook", "children")


def random_level(generator, num_nodes, num_codes, most):
    """Sparse children: nodes with 0 .. most children, codes rising within a node."""
    counts = torch.randint(0, most + 1, (num_nodes,), generator=generator)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
    codes = [torch.randperm(num_codes, generator=generator)[:n].sort().values for n in counts.tolist()]
    return start, torch.cat(codes).int()


def run_form(monkeypatch, form, *args, **kwargs):
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, form)
        return beam_step(*args, **kwargs)


@pytest.mark.parametrize("form", ["reference", "eager"])
def test_hand_worked_step(monkeypatch, form):
    # Node 0 has codes {0, 2}, node 1 has code {1}. softmax(log [1, 2, 5]) = [1, 2, 5] / 8.
    logits = torch.log(torch.tensor([[[1.0, 2.0, 5.0], [2.0, 1.0, 1.0]]], dtype=torch.float64))
    score = torch.log(torch.tensor([[0.5, 0.4]], dtype=torch.float64))
    start, code = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])
    step = run_form(monkeypatch, form, logits, score, torch.tensor([[0, 1]]), start, code, 4)
    torch.testing.assert_close(step.score_BW.exp(), torch.tensor([[0.3125, 0.1, 0.0625, 0.0]]).double())
    assert step.parent_BW.tolist() == [[0, 1, 0, 0]]
    assert step.code_BW.tolist() == [[2, 1, 0, 0]]
    assert step.node_BW.tolist() == [[1, 2, 0, 0]]
    step = run_form(monkeypatch, form, logits, score, torch.tensor([[0, 1]]), start, code, 2, "children")
    torch.testing.assert_close(step.score_BW.exp(), torch.tensor([[0.5 * 5 / 6, 0.4]]).double())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_searches=st.integers(0, 4),
    num_beams=st.integers(0, 7),
    num_codes=st.sampled_from([1, 3, 63, 100, 500]),
    width=st.sampled_from([1, 2, 7, 64, 256]),
    normalise=st.sampled_from(NORMALISE),
    coarse=st.booleans(),
)
def test_eager_equals_reference(seed, num_searches, num_beams, num_codes, width, normalise, coarse):
    generator = torch.Generator().manual_seed(seed)
    start, code = random_level(generator, 5, num_codes, num_codes)
    logits = torch.randn(num_searches, num_beams, num_codes, generator=generator, dtype=torch.float64)
    score = -torch.rand(num_searches, num_beams, generator=generator, dtype=torch.float64)
    if coarse:  # many exact ties, impossible codes and equal beams
        logits, score = logits.round(), score.round()
        logits[torch.rand(logits.shape, generator=generator) < 0.2] = -torch.inf
    empty = torch.rand(score.shape, generator=generator) < 0.3
    score[empty] = -torch.inf
    logits[empty] = torch.nan  # an empty beam is not read
    node = torch.randint(0, 5, score.shape, generator=generator)
    node[empty] = 10**9
    arguments = (logits, score, node, start, code, width, normalise)
    with pytest.MonkeyPatch.context() as patch:
        expected = run_form(patch, "reference", *arguments)
        got = run_form(patch, "eager", *arguments)
    torch.testing.assert_close(got.score_BW, expected.score_BW, rtol=1e-12, atol=1e-12)
    if not coarse:  # with ties, sums that differ in the last bit may swap equal beams
        for mine, theirs in zip(got[1:], expected[1:], strict=True):
            assert torch.equal(mine, theirs)
    kept = got.score_BW > -torch.inf
    rows = torch.arange(num_searches).unsqueeze(1).expand_as(kept)[kept]
    parent_node = node[rows, got.parent_BW[kept]]
    assert ((got.node_BW[kept] >= start[parent_node]) & (got.node_BW[kept] < start[parent_node + 1])).all()
    assert torch.equal(code[got.node_BW[kept]].long(), got.code_BW[kept])
    assert (got.node_BW[~kept] == 0).all()
    assert (got.parent_BW[~kept] == 0).all()
