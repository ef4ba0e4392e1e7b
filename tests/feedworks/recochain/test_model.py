"""RecoChain's model: reuse of the history, isolation of candidates, search over the history, causality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from feedworks.errors import ModelError
from feedworks.recochain.config import SearchConfig
from feedworks.recochain.losses import generation_loss, item_loss, rank_loss
from feedworks.recochain.model import (
    LATEST,
    NUM_PRIORS,
    NUM_SIMILARITIES,
    PAD,
    RecoChain,
    Retrieved,
    evidence,
    retrieve,
)
from feedworks.recochain.search import generate, rerank
from feedworks.training.checkpoint import load_model, save_model

from . import small
from .small import padded

HISTORIES = padded([3, 1, 4, 1, 5], [9], [2, 6, 5])
LENGTHS = torch.tensor([5, 1, 3])
SEARCH = SearchConfig(beam=6, retrieved=3)


def ranked(model: RecoChain, catalogue, item_BK: torch.Tensor, *, count: int = 3) -> torch.Tensor:
    """Logits with everything computed anew: prefix, codes, behaviours."""
    _, prefix = model.prefill(HISTORIES, LENGTHS, catalogue)
    found = retrieve(item_BK, HISTORIES, catalogue.vector_NV, count)
    return model.rank(prefix, item_BK, torch.zeros(*item_BK.shape, NUM_PRIORS), found, catalogue)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("item_tokens", [True, False])
def test_property_3_cached_branches_score_as_a_full_recompute(levels, item_tokens):
    catalogue = small.catalogue(levels=levels, codes=8)
    model = small.model(catalogue, item_tokens=item_tokens)
    generated = generate(model, HISTORIES, catalogue, SEARCH)
    cached = rerank(model, generated, HISTORIES, catalogue, SEARCH)
    for row, length in enumerate(LENGTHS.tolist()):
        for place, item in enumerate(generated.candidates.item_BK[row].tolist()):
            if item == PAD:
                assert cached[row, place] == -torch.inf
                continue
            whole = _one_sequence(model, catalogue, HISTORIES[row, :length], item)
            expected = whole + _evidence_term(model, catalogue, row, item, generated, place)
            torch.testing.assert_close(cached[row, place], expected, rtol=1e-4, atol=1e-4)


def _evidence_term(model, catalogue, row, item, generated, place) -> torch.Tensor:
    one = torch.tensor([[item]])
    states, _ = model.prefill(HISTORIES[row : row + 1], LENGTHS[row : row + 1], catalogue)
    score = model.item_scores(model.next_state(states, LENGTHS[row : row + 1]), one, catalogue)
    prior = torch.stack((generated.candidates.score_BK[row, place][None, None], score), dim=-1)
    found = retrieve(one, HISTORIES[row : row + 1], catalogue.vector_NV, SEARCH.retrieved)
    return model.evidence(evidence(one, prior, found, catalogue))[0, 0, 0]


def _one_sequence(model, catalogue, history, item) -> torch.Tensor:
    """The rank head over one plain sequence: BOS, history, candidate, behaviours, rank token."""
    one = torch.tensor([[item]])
    found = retrieve(one, history[None], catalogue.vector_NV, SEARCH.retrieved)
    tokens = torch.cat(
        (
            model._scaled(model.bos)[None],
            model.embed_items(history, catalogue).flatten(0, 1),
            model.embed_items(one[0, 0], catalogue),
            model._behaviour_tokens(found, catalogue)[0, 0],
            model._scaled(model._content(one[0], catalogue) + model.rank_token.weight[1]),
        )
    )
    return model.rank_head(model.decoder(tokens[None])[0, -1])[0]


def test_property_3_the_prefix_is_computed_once():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    runs = []
    handle = model.decoder.blocks[0].attention.register_forward_hook(lambda *_: runs.append(1))
    generated = generate(model, HISTORIES, catalogue, SEARCH)
    rerank(model, generated, HISTORIES, catalogue, SEARCH)
    handle.remove()
    assert len(runs) == 1


def test_property_3_reranking_costs_the_suffix_and_not_the_history():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    length = 30
    history = torch.arange(length)[None]
    generated = generate(model, history, catalogue, SEARCH)

    def flops(call) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops()

    once = flops(lambda: model.prefill(history, torch.tensor([length]), catalogue))
    suffix = flops(lambda: rerank(model, generated, history, catalogue, SEARCH))
    with_codes = flops(lambda: rerank(model, generated._replace(branch=None), history, catalogue, SEARCH))
    num_candidates = generated.candidates.item_BK.shape[1]
    per_token = once / (1 + 3 * length)
    new_tokens = num_candidates * (1 + SEARCH.retrieved + 1)
    # Attention over the history is part of a token's cost, running the history again is not.
    assert suffix < 2 * new_tokens * per_token
    assert suffix < num_candidates * once / 5
    # The first two codes of each candidate come from the beam search.
    assert with_codes - suffix > 0.5 * num_candidates * 2 * per_token


def test_property_4_permuting_candidates_permutes_their_scores():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    item_BK = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    order = torch.tensor([4, 2, 0, 6, 5, 1, 3])
    before, after = ranked(model, catalogue, item_BK), ranked(model, catalogue, item_BK[:, order])
    torch.testing.assert_close(before[:, order], after, rtol=1e-5, atol=1e-5)


def test_property_4_changing_one_candidate_leaves_the_others_unchanged():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    item_BK = torch.tensor([[1, 2, 3, 4]] * 3)
    before = ranked(model, catalogue, item_BK)
    item_BK[:, 2] = 30
    after = ranked(model, catalogue, item_BK)
    assert torch.equal(before[:, [0, 1, 3]], after[:, [0, 1, 3]])
    assert not torch.isclose(before[:, 2], after[:, 2]).any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(0, 6), width=st.integers(1, 8))
def test_property_6_the_search_over_the_history_equals_brute_force(seed, count, width):
    rng = np.random.default_rng(seed)
    # Few different vectors, so that similarities tie.
    vectors = torch.from_numpy(rng.integers(-1, 2, (9, 2)).astype(np.float32))
    past = padded(*[rng.integers(0, 9, rng.integers(1, width + 1)).tolist() for _ in range(3)])
    candidate = torch.from_numpy(rng.integers(0, 9, (3, 4)))
    found = retrieve(candidate, past, vectors, count)
    assert found.item_BKM.shape == found.similarity_BKM.shape == (3, 4, count)
    for row, history in enumerate(past.tolist()):
        real = [item for item in history if item != PAD]
        for place, item in enumerate(candidate[row].tolist()):
            cosine = (vectors[real] @ vectors[item]).tolist()
            best = sorted(range(len(real)), key=lambda at: (-cosine[at], -at))[:count]
            in_time = sorted(best)
            missing = count - len(in_time)
            assert found.item_BKM[row, place].tolist() == [real[at] for at in in_time] + [PAD] * missing
            similarity = found.similarity_BKM[row, place, : len(in_time)].tolist()
            assert similarity == [cosine[at] for at in in_time]


def test_property_6_equal_similarities_take_the_latest():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = retrieve(torch.tensor([[0]]), torch.tensor([[0, 1, 2, 1, 0, 2]]), vectors, 3)
    assert found.item_BKM.tolist() == [[[1, 1, 0]]]
    assert found.similarity_BKM.tolist() == [[[1.0, 1.0, 1.0]]]


def test_property_6_no_behaviours_at_all_can_be_ranked():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    none = ranked(model, catalogue, torch.tensor([[1, 2]] * 3), count=0)
    assert none.isfinite().all()
    assert not torch.isclose(none, ranked(model, catalogue, torch.tensor([[1, 2]] * 3))).any()


def test_a_missing_behaviour_is_a_token_of_its_own_whatever_its_similarity():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    missing = torch.full((1, 1, 2), PAD)
    tokens = [
        model._behaviour_tokens(Retrieved(missing, torch.full((1, 1, 2), value)), catalogue)
        for value in (-1.0, -torch.inf, 0.5)
    ]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])
    model.rank_token.weight.data[2] += 1
    assert not torch.isclose(
        model._behaviour_tokens(Retrieved(missing, torch.zeros(1, 1, 2)), catalogue), tokens[0]
    ).any()


def test_property_7_shuffling_the_future_leaves_scores_unchanged():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    item = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    shuffled = torch.tensor([[3, 1, 4, 1, 9, 6, 5, 2]])
    candidate = torch.tensor([[5, 7, 9]])
    past = item[:, :4]
    results = []
    for sequence in (item, shuffled):
        states, prefix = model.prefill(sequence, torch.tensor([4]), catalogue)
        found = retrieve(candidate, past, catalogue.vector_NV, 3)
        logits = model.target_logits(model.target_states(states, sequence))
        next_state = model.next_state(states, torch.tensor([4]))
        rank = model.rank(prefix, candidate, torch.zeros(1, 3, NUM_PRIORS), found, catalogue)
        # The first code of place 4 is scored before anything of place 4 is read.
        results.append([next_state, rank, *(level[:4] for level in logits), logits[0][4]])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def _code_logits(model, item_BT, catalogue) -> list[torch.Tensor]:
    states, _ = model.prefill(item_BT, (item_BT != PAD).sum(dim=1), catalogue)
    return model.target_logits(model.target_states(states, item_BT))


def test_property_7_a_code_is_scored_before_it_is_read():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    item = torch.tensor([[3, 1]])
    before = _code_logits(model, item, catalogue)
    changed = catalogue.code_NL.clone()
    changed[1, 1] = (changed[1, 1] + 1) % catalogue.num_codes
    other = small.Catalogue(**(vars(catalogue) | {"code_NL": changed}))
    after = _code_logits(model, item, other)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.isclose(before[2][1], after[2][1]).all()


def test_the_state_before_the_next_item_is_that_of_the_unpadded_history():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    states, _ = model.prefill(HISTORIES, LENGTHS, catalogue)
    together = model.next_state(states, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone, _ = model.prefill(HISTORIES[row : row + 1, :length], LENGTHS[row : row + 1], catalogue)
        torch.testing.assert_close(together[row], alone[0, -1], rtol=1e-5, atol=1e-5)


def test_an_untrained_ranker_keeps_the_generated_order():
    catalogue = small.catalogue()
    torch.manual_seed(0)
    model = RecoChain.for_catalogue(small.CONFIG, catalogue).eval()
    generated = generate(model, HISTORIES, catalogue, SEARCH)
    logits = rerank(model, generated, HISTORIES, catalogue, SEARCH)
    real = generated.candidates.item_BK != PAD
    torch.testing.assert_close(
        (logits - model.rank_head[2].bias)[real], generated.candidates.score_BK[real], rtol=1e-5, atol=1e-5
    )


def test_an_unseen_item_counts_by_its_vector_and_codes_alone():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    more = catalogue.with_unseen(torch.tensor([999]), catalogue.code_NL[:1], catalogue.vector_NV[:1])
    model.item.weight.data[0] = 0  # without its id, item 0 is the same as the unseen one
    for filling in (0.0, 100.0):  # of the last row, which is read for unseen ids and must not count
        model.item.weight.data[39] = filling
        unseen, known = model.embed_items(torch.tensor([40, 0]), more)
        torch.testing.assert_close(unseen, known)


def _stage_one(model, catalogue) -> torch.Tensor:
    states, _ = model.prefill(HISTORIES, LENGTHS, catalogue)
    item_P = HISTORIES[HISTORIES != PAD]
    states_PLD = model.target_states(states, HISTORIES)
    codes = generation_loss(model.target_logits(states_PLD), catalogue.code_NL[item_P])
    if not model.config.item_scores:
        return codes
    own = model.item_scores(states_PLD[:, 0], item_P[:, None], catalogue)[:, 0]
    other = model.sampled_scores(states_PLD[:, 0], item_P, 0, catalogue)
    return codes + item_loss(own, other, model.num_items)


def _stage_two(model, catalogue) -> torch.Tensor:
    # One row has fewer behaviours than M, so that the token of a missing one is used.
    candidate = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, -1]])
    _, prefix = model.prefill(HISTORIES, LENGTHS - 1 + (LENGTHS == 1), catalogue)
    found = retrieve(candidate, HISTORIES, catalogue.vector_NV, 3)
    logits = model.rank(prefix, candidate, torch.randn(3, 3, NUM_PRIORS), found, catalogue)
    return rank_loss(logits, candidate != PAD, "bce")


@pytest.mark.parametrize("item_scores", [True, False])
@pytest.mark.parametrize("item_tokens", [True, False])
def test_a_gradient_reaches_every_parameter_that_a_stage_trains(item_tokens, item_scores):
    catalogue = small.catalogue()
    model = small.model(catalogue, item_tokens=item_tokens, item_scores=item_scores)
    model.train_only_generator()
    _stage_one(model, catalogue).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert trained == moved
    assert not any(name.startswith(("evidence", "rank", "similarity")) for name in trained)
    model.zero_grad()
    model.train_both(freeze_backbone=False)
    (_stage_one(model, catalogue) + _stage_two(model, catalogue)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_a_frozen_backbone_trains_rank_tokens_and_head_alone():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    model.train_both(freeze_backbone=True)
    _stage_two(model, catalogue).backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"evidence", "rank_token", "similarity", "rank_head"}
    model.train_both(freeze_backbone=False)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_fits_one_batch_by_heart():
    catalogue = small.catalogue()
    model = small.model(catalogue).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    candidate = torch.tensor([[1, 2, 3, 4]] * 3)
    for _ in range(250):
        optimizer.zero_grad()
        rank = rank_loss(ranked(model, catalogue, candidate), candidate != PAD, "listwise")
        loss = _stage_one(model, catalogue) + rank
        loss.backward()
        optimizer.step()
    # The three histories begin alike for the model, so the first item of each can be learned to chance only.
    # Codes and items both have to be told.
    first_item = 2 * np.log(3) * 3 / len(HISTORIES[HISTORIES != PAD])
    assert loss < first_item + 0.1
    assert rank < 0.05


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    catalogue = small.catalogue()
    model, other = small.model(catalogue), small.model(catalogue, seed=1)
    save_model(tmp_path, model, "{}")
    load_model(tmp_path, other)
    candidate = torch.tensor([[1, 2, 3]] * 3)
    assert torch.equal(ranked(model, catalogue, candidate), ranked(other, catalogue, candidate))
    larger = small.model(small.catalogue(num_items=41))
    with pytest.raises(ModelError, match="item"):
        load_model(tmp_path, larger)


def test_evidence_equals_its_definition():
    catalogue = small.catalogue(block_widths=(2, 4))
    item_BK = torch.tensor([[2, 7], [4, PAD], [1, 3]])
    prior_BKP = torch.tensor([[-1.0, -2.0], [-3.0, 0.0], [-0.5, -4.0]]).unsqueeze(-1) * torch.tensor(
        [1.0, -3]
    )
    found = retrieve(item_BK, HISTORIES, catalogue.vector_NV, 4)
    table = evidence(item_BK, prior_BKP, found, catalogue)
    assert table.shape == (3, 2, NUM_PRIORS + 2 * NUM_SIMILARITIES)
    for row in range(3):
        for place in range(2):
            if item_BK[row, place] == PAD:
                continue
            expected = prior_BKP[row, place].tolist()
            behind = [item for item in found.item_BKM[row, place].tolist() if item != PAD]
            for low, high in ((0, 2), (2, 6)):
                own = catalogue.vector_NV[item_BK[row, place], low:high]
                cosines = [
                    float(
                        torch.nn.functional.cosine_similarity(own, catalogue.vector_NV[item, low:high], dim=0)
                    )
                    for item in behind
                ]
                mean = sum(cosines) / len(cosines)
                expected += [max(cosines), cosines[-1], max(cosines[-LATEST:]), mean]
            torch.testing.assert_close(table[row, place], torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_evidence_without_behaviours_is_the_prior_alone():
    catalogue = small.catalogue()
    item_BK = torch.tensor([[2], [4], [1]])
    found = retrieve(item_BK, HISTORIES, catalogue.vector_NV, 0)
    table = evidence(item_BK, torch.full((3, 1, NUM_PRIORS), -2.0), found, catalogue)
    assert table[..., :NUM_PRIORS].eq(-2).all()
    assert table[..., NUM_PRIORS:].eq(0).all()


@pytest.mark.parametrize("item_scores", [True, False])
def test_an_item_score_is_a_product_with_the_item_and_nothing_where_switched_off(item_scores):
    catalogue = small.catalogue()
    model = small.model(catalogue, item_scores=item_scores)
    states, _ = model.prefill(HISTORIES, LENGTHS, catalogue)
    state_BD, item_BK = model.next_state(states, LENGTHS), torch.tensor([[0, 3], [7, 7], [39, 1]])
    scores = model.item_scores(state_BD, item_BK, catalogue)
    for row, place in np.ndindex(3, 2):
        item = int(item_BK[row, place])
        content = model.item.weight[item] + model.vector.weight @ catalogue.vector_NV[item]
        expected = model.item_query.weight @ state_BD[row] @ content if item_scores else torch.zeros(())
        torch.testing.assert_close(scores[row, place], expected, rtol=1e-4, atol=1e-4)
    every = torch.arange(40).expand(3, -1)
    if item_scores:
        target = torch.tensor([5, 6, 7])
        sampled = model.sampled_scores(state_BD, target, 0, catalogue)
        own = every == target[:, None]
        torch.testing.assert_close(
            sampled, model.item_scores(state_BD, every, catalogue).masked_fill(own, -torch.inf)
        )


def test_drawn_items_are_scored_as_in_the_whole_catalogue_and_never_hold_the_target():
    catalogue = small.catalogue()
    model = small.model(catalogue)
    state_PD, target_P = torch.randn(6, small.CONFIG.width), torch.tensor([0, 1, 2, 3, 4, 5])
    every = model.sampled_scores(state_PD, target_P, 40, catalogue)
    torch.manual_seed(3)
    drawn = model.sampled_scores(state_PD, target_P, 30, catalogue)
    torch.manual_seed(3)
    item_M = torch.randint(40, (30,))
    torch.testing.assert_close(drawn, every[:, item_M])
    assert torch.equal(drawn == -torch.inf, item_M == target_P[:, None])
