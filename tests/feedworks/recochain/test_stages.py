"""Both stages on planted histories: the three published trends, and what the options of stage II do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from feedworks.metrics import ranking
from feedworks.recochain import stages
from feedworks.recochain.data import Sequences, rank_positions
from feedworks.recochain.model import evidence, retrieve

from . import planted, small
from .test_data import generated


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for batches this small faster than more
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return planted.learn(tmp_path_factory.mktemp("planted"), seed=0)


def assert_published_trends(learned: planted.Learned) -> None:
    by_retrieved = [learned.gain(retrieved=count) for count in (0, 1, 5)]
    assert by_retrieved == sorted(by_retrieved)
    assert by_retrieved[0] < 0.1
    assert by_retrieved[2] > 0.25
    by_beam = [learned.gain(beam=beam) for beam in (2, 6, 16)]
    assert by_beam[0] + 0.05 < by_beam[1]
    assert by_beam[1] + 0.05 < by_beam[2]


def test_property_8_reranking_gains_more_with_more_behaviours_and_wider_beams(learned):
    assert_published_trends(learned)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_property_8_on_other_seeds(tmp_path, seed):
    learned = planted.learn(tmp_path, seed=seed)
    assert_published_trends(learned)
    assert_generation_is_kept(learned)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_property_8_the_gain_shrinks_when_the_generator_sees_the_full_history(tmp_path, seed):
    near = planted.learn(tmp_path / "near", seed=seed)
    far = planted.learn(tmp_path / "far", seed=seed, overrides=("max_history=32",))
    assert far.gain() < 0.5 * near.gain()
    assert far.ndcg(far.score().item_UK) > near.ndcg(near.score().item_UK) + 0.2


def assert_generation_is_kept(learned: planted.Learned) -> None:
    for beam in (6, 12, 16):
        found = [learned.score(beam=beam, stage=stage).item_UK for stage in (1, 2)]
        before, after = ((ranking.ranks_of_targets(order, learned.target_U) > 0).mean() for order in found)
        assert after > before - 0.05


def test_property_9_stage_two_keeps_the_recall_of_the_beam(learned):
    assert_generation_is_kept(learned)


def test_property_5_reranking_preserves_the_set(learned):
    scored = learned.score()
    assert np.array_equal(np.sort(scored.item_UK, axis=1), np.sort(scored.reranked(), axis=1))
    assert not np.array_equal(scored.item_UK, scored.reranked())
    for order in (scored.item_UK, scored.reranked()):
        rank = ranking.ranks_of_targets(order, learned.target_U)
        assert ranking.recall(rank, scored.item_UK.shape[1]).sum() == (rank > 0).sum()
    full = [
        ranking.recall(ranking.ranks_of_targets(order, learned.target_U), 16).mean()
        for order in (scored.item_UK, scored.reranked())
    ]
    assert full[0] == full[1]


def test_history_rows_say_what_was_optimised(learned):
    last = learned.stage_two.history[-1]
    parts = last["train/generation"] + last["train/items"] + last["train/rank"]
    assert last["train/loss"] == pytest.approx(parts, rel=1e-4)
    assert {"valid/generation/ndcg@10", "valid/rerank/ndcg@10", "valid/rerank/recall@5"} <= last.keys()
    assert learned.stage_two.best_metric == last["valid/rerank/ndcg@10"]


def changed_parts(model, before) -> set[str]:
    now = model.state_dict()
    return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, now[name])}


def stage_two(tmp_path, *overrides: str):
    """Stage II of an untrained model on random sequences."""
    config = small.quick(*overrides)
    made = generated()
    catalogue = small.catalogue(num_items=20)
    model = small.model(catalogue)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examples = stages.mine(model, made, catalogue, config)
    result = stages.train_stage_two(model, made, examples, catalogue, config, tmp_path / "state")
    return changed_parts(model, before), result


def test_freezing_the_backbone_changes_rank_tokens_and_head_alone(tmp_path):
    changed, _ = stage_two(tmp_path, "rank.freeze_backbone=true")
    assert changed == {"evidence", "rank_token", "similarity", "rank_head"}


def test_without_freezing_everything_changes(tmp_path):
    changed, _ = stage_two(tmp_path)
    assert changed == {
        *("evidence", "rank_token", "similarity", "rank_head"),
        *("code", "item", "vector", "bos", "decoder", "item_query"),
    }


def test_stage_two_starts_from_fitted_evidence(tmp_path):
    changed, _ = stage_two(tmp_path, "joint.lr=0", "joint.weight_decay=0")
    assert changed == {"evidence"}


def own_loss(model, made, examples, catalogue, config) -> float:
    """Mean of -log softmax of the target among its beam by the evidence alone, one row after the other."""
    losses = []
    for user, position, beam, prior in zip(*examples[:4], strict=True):
        target, past = made.row(user)[position], torch.from_numpy(made.row(user)[:position])[None]
        real = beam >= 0
        if target not in beam[real]:
            continue
        item = torch.from_numpy(beam[real])[None]
        found = retrieve(item, past, catalogue.vector_NV, config.search.retrieved)
        table = evidence(item, torch.from_numpy(prior[real])[None], found, catalogue)
        log_p = model.evidence(table)[0, :, 0].log_softmax(dim=0)
        losses.append(-float(log_p[item[0] == target]))
    assert len(losses) > 5
    return float(np.mean(losses))


@torch.no_grad()
def test_fitted_evidence_ranks_the_mined_targets_better_than_the_generator():
    config = small.quick("search.beam=12", "search.bucket_cap=3")
    made, catalogue = generated(), small.catalogue(num_items=20)
    model = small.model(catalogue)
    examples = stages.mine(model, made, catalogue, config)
    rows = (model, made, examples, catalogue, config)
    losses = []
    for weight in (0.0, 1.0):  # no order at all, and that of the generator
        model.set_evidence([weight])
        losses.append(own_loss(*rows))
    stages.calibrate(*rows)
    assert own_loss(*rows) < min(losses) - 0.01


def test_loss_and_weight_are_read(tmp_path):
    losses = {}
    for name, settings in {
        "bce": ("rank.loss=bce",),
        "listwise": (),
        "double": ("rank.loss=bce", "rank.weight=2"),
    }.items():
        _, result = stage_two(tmp_path / name, "joint.lr=0", "joint.weight_decay=0", *settings)
        losses[name] = result.history[0]
    assert losses["bce"]["train/generation"] == pytest.approx(losses["listwise"]["train/generation"])
    assert losses["bce"]["train/rank"] != pytest.approx(losses["listwise"]["train/rank"], rel=1e-2)
    assert losses["double"]["train/rank"] == pytest.approx(losses["bce"]["train/rank"])
    assert losses["double"]["train/loss"] == pytest.approx(
        losses["bce"]["train/loss"] + losses["bce"]["train/rank"], rel=1e-4
    )


def test_stage_one_leaves_the_ranker_alone(tmp_path):
    config = small.quick()
    catalogue = small.catalogue(num_items=20)
    model = small.model(catalogue)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stages.train_stage_one(model, generated(), catalogue, config, tmp_path / "state")
    assert changed_parts(model, before) == {"code", "item", "vector", "bos", "decoder", "item_query"}


def test_items_that_are_never_recommended_are_not_mined_either():
    made, catalogue = generated(), small.catalogue(num_items=20)
    model = small.model(catalogue)
    for exclude in (False, True):
        config = small.quick(f"exclude_seen={exclude}".lower(), "search.beam=20", "search.bucket_cap=20")
        examples = stages.mine(model, made, catalogue, config)
        seen = [
            np.isin(beam, made.row(user)[:position]).any()
            for user, position, beam in zip(
                examples.user_N, examples.position_N, examples.beam_NK, strict=True
            )
        ]
        assert all(seen) is not exclude
        assert any(seen) is not exclude


def test_mined_beams_are_those_of_the_history_before_the_target():
    config = small.quick("rank.positions=2", "search.beam=20", "search.bucket_cap=20")
    made, catalogue = generated(), small.catalogue(num_items=20)
    model = small.model(catalogue)
    examples = stages.mine(model, made, catalogue, config)
    user, position = rank_positions(made, 2)
    assert np.array_equal(examples.user_N, user)
    assert np.array_equal(examples.position_N, position)
    rate = stages.hit_rate(made, examples)
    target = np.array([made.row(u)[p] for u, p in zip(user, position, strict=True)])
    assert rate == (examples.beam_NK == target[:, None]).any(axis=1).mean()
    # Where the target is in the beam, its own score is the score of its place there.
    row, column = np.nonzero(examples.beam_NK == target[:, None])
    assert len(row) > 20
    np.testing.assert_allclose(examples.prior_NKP[row, column], examples.target_prior_NP[row], atol=1e-5)
    # The target itself must not count.
    latest = rank_positions(made, 1)
    altered = Sequences(made.user_id, made.start, made.item.copy())
    altered.item[made.start[latest[0]] + latest[1]] = 0
    again = stages.mine(model, altered, catalogue, replace(config, rank=replace(config.rank, positions=1)))
    assert np.array_equal(again.beam_NK, examples.beam_NK[: len(latest[0])])
