"""Scoring many users is scoring each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from feedworks.recochain import scoring
from feedworks.recochain.config import SearchConfig
from feedworks.recochain.scoring import Scored, Window, score_targets, score_users
from feedworks.recochain.search import generate, rerank

from . import small

SEARCH = SearchConfig(beam=8, retrieved=3)
HISTORIES = [np.random.default_rng(user).integers(0, 40, 1 + user % 9) for user in range(20)]


@pytest.fixture(scope="module")
def catalogue():
    return small.catalogue()


@pytest.fixture(scope="module")
def model(catalogue):
    return small.model(catalogue)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_the_batch_changes_no_score(model, catalogue, batch_size):
    window = Window(history=5, search=7)
    found = score_users(model, catalogue, HISTORIES, SEARCH, window, batch_size)
    assert found.item_UK.shape == (20, 8)
    assert found.invalid_rate == 0
    for user, history in enumerate(HISTORIES):
        item, past = (torch.from_numpy(history[-count:])[None] for count in (5, 7))
        one = generate(model, item, catalogue, SEARCH)
        assert found.item_UK[user].tolist() == one.candidates.item_BK[0].tolist()
        np.testing.assert_allclose(found.generation_UK[user], one.candidates.score_BK[0], atol=1e-5)
        logits = rerank(model, one, past, catalogue, SEARCH)[0]
        np.testing.assert_allclose(found.rank_UK[user], logits, atol=1e-5)
        best = logits.argsort(descending=True, stable=True)
        assert found.reranked()[user].tolist() == one.candidates.item_BK[0][best].tolist()


def test_the_windows_are_what_is_read(model, catalogue):
    long = [np.arange(12), np.arange(12)[::-1].copy()]

    def scores(history, search) -> Scored:
        return score_users(model, catalogue, history, SEARCH, Window(4, search))

    cut = [history[-4:] for history in long]
    assert np.array_equal(scores(long, 4).rank_UK, scores(cut, 4).rank_UK)
    wide, narrow = scores(long, 12), scores(long, 4)
    assert np.array_equal(wide.generation_UK, narrow.generation_UK)
    assert not np.allclose(wide.rank_UK, narrow.rank_UK)


def test_without_a_search_nothing_is_ranked(model, catalogue):
    found = score_users(model, catalogue, HISTORIES, SEARCH, Window(5))
    assert (found.rank_UK == -np.inf).all()
    assert np.array_equal(found.reranked(), found.item_UK)


def test_seen_items_are_left_out_even_those_before_the_window(model, catalogue):
    wide = SearchConfig(beam=40, bucket_cap=40)
    found = score_users(model, catalogue, HISTORIES, wide, Window(2, 5, exclude_seen=True), 7)
    for user, history in enumerate(HISTORIES):
        items = found.item_UK[user][found.item_UK[user] >= 0].tolist()
        assert sorted(items) == sorted(set(range(40)) - set(history.tolist()))
        assert (found.rank_UK[user][found.item_UK[user] < 0] == -np.inf).all()


def test_padding_stays_last_when_reranked():
    scored = Scored(
        np.array([[4, 7, 2, -1]]),
        np.zeros((1, 4), np.float32),
        np.zeros((1, 4), np.float32),
        np.array([[-9.0, 3.0, -50.0, -np.inf]]),
        0.0,
    )
    assert scored.reranked().tolist() == [[7, 4, 2, -1]]


def test_no_users_give_empty_tables(model, catalogue):
    found = score_users(model, catalogue, [], SEARCH, Window(5, 5))
    assert found.item_UK.shape[0] == 0
    assert found.invalid_rate == 0


def test_a_target_is_scored_as_the_candidate_that_it_is(model, catalogue):
    wide = SearchConfig(beam=40, bucket_cap=40)
    found = score_users(model, catalogue, HISTORIES, wide, Window(5))
    place = np.arange(20) * 2
    target = found.item_UK[np.arange(20), place]
    own = score_targets(model, catalogue, HISTORIES, target, wide, max_history=5, batch_size=7)
    for column, scores in enumerate((found.generation_UK, found.item_score_UK)):
        np.testing.assert_allclose(own[:, column], scores[np.arange(20), place], atol=1e-5)


def test_semantic_ids_of_no_item_are_counted(model, catalogue, monkeypatch):
    missing = next(
        code for code in torch.cartesian_prod(*[torch.arange(5)] * 3) if catalogue.trie.find(code[None]) < 0
    )

    def broken(*arguments):
        found = generate(*arguments)
        code = found.beams.code_BWL.clone()
        code[:, 0] = missing
        return found._replace(beams=found.beams._replace(code_BWL=code))

    monkeypatch.setattr(scoring, "generate", broken)
    assert score_users(model, catalogue, HISTORIES, SEARCH, Window(5)).invalid_rate == 1 / 8
