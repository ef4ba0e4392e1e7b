"""beam_step's Triton kernels against the definition in float64; test_beam_step_kernel.py starts this.

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

from feedworks.recochain.trie import Trie
from feedworks_kernels import beam_step
from feedworks_kernels.testing import forced, poisoned_memory, random_level

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
kernel = importlib.import_module("feedworks_kernels.beam_step.kernel")
NORMALISE = ("codebook", "children")
# B searches, K beams, C codes, W kept.
# The interpreter takes 20 ms for a beam, so beams are few there.
SHAPES = [(1, 1, 700, 64), (2, 3, 100, 30), (1, 7, 63, 256), (3, 2, 1, 5), (1, 9, 20, 1)]


@pytest.fixture(autouse=True)
def _triton():
    # The interpreter computes by numpy, which warns of inf - inf.
    with forced("triton"), np.errstate(all="ignore"):
        yield


def step_of(seed, num_searches, num_beams, num_codes, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    level = random_level(generator, 6, num_codes)
    logits = scale * torch.randn(num_searches, num_beams, num_codes, generator=generator)
    logits[torch.rand(logits.shape, generator=generator) < 0.05] = -torch.inf
    logits[torch.rand(logits.shape[:2], generator=generator) < 0.05] = -torch.inf
    score = -torch.rand(num_searches, num_beams, generator=generator)
    node = torch.randint(0, 6, score.shape, generator=generator)
    empty = torch.rand(score.shape, generator=generator) < 0.2
    score[empty], logits[empty], node[empty] = -torch.inf, torch.nan, 10**9
    return [x.to(DEVICE) for x in (logits.to(dtype), score, node, *level)]


def definition(arguments, width, normalise, per_beam=None):
    logits, score, *rest = (x.cpu() for x in arguments)
    with forced("reference"):
        return beam_step(logits.double(), score.double(), *rest, width, normalise, per_beam=per_beam)


def assert_best(got, arguments, width, normalise, per_beam=None):
    """As many, as good, all different, each with its own score; so equal up to the order of equal scores."""
    expected = definition(arguments, width, normalise, per_beam)
    got = type(got)(*(column.cpu() for column in got))
    torch.testing.assert_close(got.score_BW.double(), expected.score_BW, rtol=2e-5, atol=2e-5)
    everything = definition(arguments, 10_000, normalise)
    for b in range(len(got.score_BW)):
        live = got.score_BW[b] > -torch.inf
        columns = [column[b][live].tolist() for column in got]
        found = {tuple(child): score for score, *child in zip(*columns, strict=True)}
        assert len(found) == int(live.sum())
        real = {
            tuple(child): score for score, *child in zip(*(c[b].tolist() for c in everything), strict=True)
        }
        for child, score in found.items():
            assert abs(real[child] - score) <= 2e-5 * (1 + abs(score))
        assert not any(column[b][~live].any() for column in got[1:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finds_the_best(shape, normalise, dtype):
    arguments = step_of(1, *shape[:3], dtype=dtype, scale=3.0)
    with poisoned_memory():
        got = beam_step(*arguments, shape[3], normalise)
    assert_best(got, arguments, shape[3], normalise)


@pytest.mark.parametrize("per_beam", [1, 3, 50])
@pytest.mark.parametrize("normalise", NORMALISE)
def test_few_children_of_each_beam(per_beam, normalise):
    arguments = step_of(2, 2, 4, 60)
    got = beam_step(*arguments, 25, normalise, per_beam=per_beam)
    assert_best(got, arguments, 25, normalise, per_beam)
    for b in range(2):
        assert got.parent_BW[b][got.score_BW[b] > -torch.inf].bincount().max() <= per_beam


@pytest.mark.parametrize(("num_beams", "num_codes", "width"), [(3, 60, 70), (9, 5, 16), (1, 600, 100)])
@pytest.mark.parametrize("per_beam", [None, 2])
def test_equal_scores_stand_in_order_of_parent_then_code(num_beams, num_codes, width, per_beam):
    level = torch.tensor([0, num_codes]), torch.arange(num_codes)
    logits = torch.zeros(1, num_beams, num_codes)
    logits[:, :, num_codes // 2] = -torch.inf
    score = torch.arange(num_beams).remainder(2).neg().float().view(1, -1)
    arguments = [x.to(DEVICE) for x in (logits, score, torch.zeros(1, num_beams).long(), *level)]
    got = beam_step(*arguments, width, per_beam=per_beam)
    expected = definition(arguments, width, "codebook", per_beam)
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        assert torch.equal(mine.cpu(), theirs)


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_logit_comes_out_on_top(normalise, value):
    arguments = step_of(3, 1, 4, 50)
    arguments[1][:] = 0
    arguments[2][:] = torch.tensor([0, 1, 2, 3])
    arguments[3:] = [x.to(DEVICE) for x in (torch.arange(0, 210, 50), torch.arange(50).repeat(4))]
    arguments[0][:] = 0
    arguments[0][0, 2, 30] = value
    got = beam_step(*arguments, 20, normalise)
    assert got.score_BW[0].isnan().all()
    assert (got.parent_BW[0] == 2).all()
    later = beam_step(arguments[0][:, :1].expand(1, 20, 50), got.score_BW, got.node_BW * 0, *arguments[3:], 5)
    assert later.score_BW.isnan().all()


def test_what_does_not_exist_has_no_children():
    logits, score = torch.zeros(1, 4, 6, device=DEVICE), torch.zeros(1, 4, device=DEVICE)
    start, code = torch.tensor([0, 3, 9], device=DEVICE), torch.tensor([0, 7, -1, 1, 2], device=DEVICE)
    node = torch.tensor([[0, 2, -1, 1]], device=DEVICE)
    got = beam_step(logits, score, node, start, code, 5)
    assert got.score_BW.isfinite().sum() == 3
    assert got.parent_BW.tolist() == [[0, 3, 3, 0, 0]]
    assert got.code_BW.tolist() == [[0, 1, 2, 0, 0]]
    assert got.node_BW.tolist() == [[0, 3, 4, 0, 0]]


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5)])
def test_nothing_to_extend(shape):
    level = torch.tensor([0, 2], device=DEVICE), torch.tensor([0, 3], device=DEVICE)
    logits = torch.zeros(shape, device=DEVICE)
    got = beam_step(logits, logits[..., 0], logits[..., 0].long(), *level, 4)
    assert got.score_BW.shape == (shape[0], 4)
    assert (got.score_BW == -torch.inf).all()
    assert not torch.stack(got[1:]).any()


def test_no_children_at_all():
    level = torch.tensor([0, 0], device=DEVICE), torch.tensor([], dtype=torch.int64, device=DEVICE)
    logits = torch.zeros(1, 2, 5, device=DEVICE)
    assert (beam_step(logits, logits[..., 0], logits[..., 0].long(), *level, 4).score_BW == -torch.inf).all()


def test_strides_and_integer_types_do_not_matter():
    arguments = step_of(4, 2, 3, 40)
    expected = beam_step(*arguments, 20)
    wide = torch.full((40, 3, 4), torch.nan, device=DEVICE)
    wide[:, :, 1:3] = arguments[0].permute(2, 1, 0)
    strided = [wide.permute(2, 1, 0)[1:3], arguments[1].T.contiguous().T, arguments[2].T.contiguous().T]
    deep = torch.stack((arguments[0], arguments[0] * torch.nan), dim=1)[:, 0]
    for changed in (
        [*strided, *arguments[3:]],
        [deep, *arguments[1:]],
        [*arguments[:2], arguments[2].int(), *(x.long() for x in arguments[3:])],
    ):
        for mine, theirs in zip(beam_step(*changed, 20), expected, strict=True):
            assert torch.equal(mine, theirs)


def test_more_than_a_program_holds_goes_to_the_other_form(monkeypatch):
    arguments = step_of(5, 1, 3, 80)
    monkeypatch.setattr(kernel, "MOST_PLACES", 64)
    monkeypatch.setattr(kernel, "extend_kernel", None)
    assert_best(beam_step(*arguments, 40), arguments, 40, "codebook")
    double = [x.double() if x.is_floating_point() else x for x in arguments]
    assert beam_step(*double, 4).score_BW.dtype == torch.float64


@pytest.mark.skipif(INTERPRETED, reason="needs more cores than one")
def test_a_hundred_runs_are_equal():
    arguments = step_of(6, 2, 256, 2000)
    first = beam_step(*arguments, 256)
    for _ in range(100):
        for mine, theirs in zip(beam_step(*arguments, 256), first, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.skipif(INTERPRETED, reason="a CUDA graph")
@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_graph_replays_with_new_numbers(normalise):
    arguments, others = step_of(7, 1, 256, 2000), step_of(8, 1, 256, 2000)
    others[3:] = arguments[3:]
    beam_step(*arguments, 256, normalise)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step = beam_step(*arguments, 256, normalise)
    for mine, new in zip(arguments[:3], others[:3], strict=True):
        mine.copy_(new)
    graph.replay()
    for got, expected in zip(step, beam_step(*others, 256, normalise), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.skipif(INTERPRETED, reason="two minutes on a GPU")
def test_random_shapes_for_two_minutes():
    draw, end_s = random.Random(0), time.perf_counter() + 120
    while time.perf_counter() < end_s:
        shape = draw.choice([1, 2, 5]), draw.choice([1, 3, 33, 256]), draw.choice([7, 100, 1000, 3000])
        width, normalise = draw.choice([1, 20, 256]), draw.choice(NORMALISE)
        per_beam = draw.choice([None, 1, 10])
        arguments = step_of(draw.randrange(1 << 30), *shape, scale=draw.choice([1.0, 30.0]))
        with poisoned_memory():
            got = beam_step(*arguments, width, normalise, per_beam=per_beam)
        expected = beam_step(
            *(x.double() if i < 2 else x for i, x in enumerate(arguments)),
            width,
            normalise,
            per_beam=per_beam,
        )
        torch.testing.assert_close(got.score_BW.double(), expected.score_BW, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_whole_search_is_that_of_the_other_form(normalise):
    trie = Trie.build(torch.randint(0, 12, (60, 3), generator=torch.Generator().manual_seed(9)), 12)
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(10))

    def search(device):
        score, node = torch.zeros(1, 1, device=device), torch.zeros(1, 1, dtype=torch.int64, device=device)
        for level, row in zip(trie.to(device).levels, logits.to(device), strict=True):
            step = beam_step(row.expand(1, score.shape[1], 12), score, node, *level, 9, normalise)
            score, node = step.score_BW, step.node_BW
        return score.cpu(), node.cpu()

    score, node = search(DEVICE)
    with forced("eager"):
        expected_score, expected_node = search("cpu")
    torch.testing.assert_close(score, expected_score)
    assert torch.equal(node, expected_node)
