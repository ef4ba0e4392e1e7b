"""Constrained search: never outside the trie, exhaustive when wide enough, and buckets in order."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from feedworks.recochain import search
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import SearchConfig
from feedworks.recochain.model import PAD
from feedworks.recochain.search import beam_search, expand, generate, item_log_p
from feedworks_kernels import beam_step

from . import small
from .small import padded

HISTORIES = padded([3, 1, 4, 1, 5], [9], [2, 6, 5])
LENGTHS = torch.tensor([5, 1, 3])


def setup(*, few_children: bool = False, **sizes: int):
    """Model and catalogue in float64; few children make the search read single output rows."""
    catalogue = small.catalogue(**({"num_items": 60, "codes": 64} if few_children else {}) | sizes)
    catalogue = Catalogue(**(vars(catalogue) | {"vector_NV": catalogue.vector_NV.double()}))
    return small.model(catalogue).double(), catalogue


def beams_of(model, catalogue, config):
    states, prefix = model.prefill(HISTORIES, LENGTHS, catalogue)
    return beam_search(model, prefix, model.next_state(states, LENGTHS), catalogue, config)


def exhaustive(model, catalogue, normalise: str) -> torch.Tensor:
    """Log-probability of every existing SID for each history, by plain forward passes: `(rows, S)`."""
    sids = catalogue.trie.sids().tolist()
    existing = {tuple(sid[:depth]) for sid in sids for depth in range(len(sid) + 1)}
    table = torch.zeros(len(HISTORIES), len(sids), dtype=torch.float64)
    for row, length in enumerate(LENGTHS.tolist()):
        start = model.embed_items(HISTORIES[row, :length], catalogue).flatten(0, 1)
        start = torch.cat((model._scaled(model.bos)[None], start))
        for place, sid in enumerate(sids):
            codes = [model.embed_codes(torch.tensor(code), level)[None] for level, code in enumerate(sid)]
            states = model.decoder(torch.cat((start, *codes))[None])[0]
            for level, code in enumerate(sid):
                logits = model.code_logits(states[len(start) - 1 + level], level)
                if normalise == "children":
                    allowed = [(*sid[:level], c) in existing for c in range(catalogue.num_codes)]
                    logits = logits.masked_fill(~torch.tensor(allowed), -torch.inf)
                table[row, place] += logits.log_softmax(dim=-1)[code]
    return table.detach()


@pytest.mark.parametrize(
    ("normalise", "few_children", "levels"),
    list(product(["codebook", "children"], [False, True], [1, 3])),
)
def test_property_2_a_wide_beam_equals_exhaustive_scoring(normalise, few_children, levels):
    model, catalogue = setup(few_children=few_children, levels=levels)
    width = catalogue.trie.num_sids + 3
    found = beams_of(model, catalogue, SearchConfig(beam=width, normalise=normalise))
    expected = exhaustive(model, catalogue, normalise)
    best = expected.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(found.score_BW[:, :-3].double(), best.values, rtol=1e-5, atol=1e-5)
    assert (found.score_BW[:, -3:] == -torch.inf).all()
    for row in range(len(HISTORIES)):
        assert sorted(found.leaf_BW[row, :-3].tolist()) == list(range(catalogue.trie.num_sids))
        of_leaf = expected[row, found.leaf_BW[row, :-3]]
        torch.testing.assert_close(of_leaf, found.score_BW[row, :-3].double(), rtol=1e-5, atol=1e-5)
    if normalise == "children":
        total = found.score_BW[:, :-3].logsumexp(dim=1).exp()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beam", [1, 4, 9])
@pytest.mark.parametrize("few_children", [False, True])
@pytest.mark.parametrize("normalise", ["codebook", "children"])
def test_property_2_a_beam_never_leaves_the_trie(beam, few_children, normalise):
    model, catalogue = setup(few_children=few_children)
    found = beams_of(model, catalogue, SearchConfig(beam=beam, normalise=normalise))
    assert found.code_BWL.shape == (3, beam, 3)
    leaf = catalogue.trie.find(found.code_BWL.flatten(0, 1)).reshape(3, beam)
    assert torch.equal(leaf, found.leaf_BW)
    assert (leaf >= 0).all()
    assert all(len(set(row)) == beam for row in leaf.tolist())
    assert (found.score_BW.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("beam", [3, 8, 100])
def test_property_2_the_path_of_few_children_equals_the_kernel(beam, monkeypatch):
    model, catalogue = setup(few_children=True)
    config = SearchConfig(beam=beam, normalise="children")
    calls = []
    monkeypatch.setattr(search, "beam_step", lambda *a: calls.append(1) or beam_step(*a))
    fast = beams_of(model, catalogue, config)
    assert len(calls) == 1  # 64 codes at the root are many, the nodes below have few
    monkeypatch.setattr(search, "FEW_CHILDREN", -1)
    slow = beams_of(model, catalogue, config)
    assert len(calls) == 1 + 3
    real = slow.score_BW > -torch.inf
    assert torch.equal(real, fast.score_BW > -torch.inf)
    assert torch.equal(fast.code_BWL[real], slow.code_BWL[real])
    assert torch.equal(fast.leaf_BW[real], slow.leaf_BW[real])
    torch.testing.assert_close(fast.score_BW, slow.score_BW, rtol=1e-6, atol=1e-6)
    for one, other in zip(fast.branch, slow.branch, strict=True):
        keep = real[:, :, None, None, None]
        torch.testing.assert_close(one.key * keep, other.key * keep, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalise", ["codebook", "children"])
def test_a_given_item_has_the_score_of_the_candidate_that_it_becomes(normalise):
    model, catalogue = setup()
    config = SearchConfig(beam=100, bucket_cap=50, normalise=normalise)
    states, prefix = model.prefill(HISTORIES, LENGTHS, catalogue)
    state = model.next_state(states, LENGTHS)
    candidates = expand(beam_search(model, prefix, state, catalogue, config), catalogue, 50)
    assert sorted(candidates.item_BK[0].tolist()) == list(range(40))
    own = item_log_p(model, prefix, state, candidates.item_BK, catalogue, config)
    torch.testing.assert_close(own, candidates.score_BK, rtol=1e-5, atol=1e-5, check_dtype=False)
    if normalise == "children":
        total = candidates.score_BK.logsumexp(dim=1).exp()
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seen", [[[], [], []], [[0, 1, 2, 3], [5], list(range(38))]])
def test_buckets_give_their_most_popular_unseen_items_and_the_best_of_all_are_kept(seen):
    model, catalogue = setup(levels=1, codes=8)
    beams = generate(model, HISTORIES, catalogue, SearchConfig(beam=6, bucket_cap=3)).beams
    candidates = expand(beams, catalogue, 3, padded(*(row or [PAD] for row in seen)))
    for row in range(3):
        scored = []
        for score, leaf in zip(beams.score_BW[row].tolist(), beams.leaf_BW[row].tolist(), strict=True):
            _, bucket = catalogue.trie.expand(torch.tensor([leaf]))
            weight = catalogue.count_N[bucket] + 1.0
            share = (weight / weight.sum()).log()
            scored += [
                (score + float(log_p), item)
                for item, log_p in list(zip(bucket.tolist(), share, strict=True))[:3]
                if item not in seen[row]
            ]
        best = sorted(scored, reverse=True)[:6]
        assert len(best) == 6 or len(seen[row]) == 38
        found = [item for item in candidates.item_BK[row].tolist() if item != PAD]
        assert found == [item for _, item in best]
        expected = torch.tensor([score for score, _ in best], dtype=torch.float64)
        kept = candidates.score_BK[row, : len(found)]
        torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)
        assert (candidates.score_BK[row, len(found) :] == -torch.inf).all()
        leaf = catalogue.trie.find(catalogue.code_NL[found])
        assert beams.leaf_BW[row, candidates.beam_BK[row, : len(found)]].tolist() == leaf.tolist()


def test_everything_seen_leaves_no_candidate():
    model, catalogue = setup()
    seen = torch.arange(40).expand(3, -1)
    generated = generate(model, HISTORIES, catalogue, SearchConfig(beam=5), seen)
    assert (generated.candidates.item_BK == PAD).all()
    logits = search.rerank(model, generated, HISTORIES, catalogue, SearchConfig(beam=5))
    assert (logits == -torch.inf).all()


def test_kept_branches_are_those_of_the_candidates_codes():
    model, catalogue = setup()
    generated = generate(model, HISTORIES, catalogue, SearchConfig(beam=6))
    code_BKL = catalogue.code_NL[generated.candidates.item_BK.clamp_min(0)]
    tokens = torch.stack([model.embed_codes(code_BKL[..., level], level) for level in (0, 1)], dim=2)
    _, anew = model.decoder.extend(tokens, generated.prefix)
    real = (generated.candidates.item_BK != PAD)[:, :, None, None, None]
    for kept, made in zip(generated.branch, anew, strict=True):
        torch.testing.assert_close(kept.key * real, made.key * real)
        torch.testing.assert_close(kept.value * real, made.value * real)
