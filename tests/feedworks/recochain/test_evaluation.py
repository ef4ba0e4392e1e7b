"""The numbers of a finished run: again from ranks and events, and those that must always stand."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pyarrow.parquet as pq
import pytest

from feedworks.recochain.data import read_sequences
from feedworks.recochain.evaluation import METHODS
from feedworks.recochain.steps import passes_gate
from feedworks.storage import read_json

from . import small


@pytest.fixture(scope="module")
def work(finished_run):
    (folder,) = finished_run.glob("work/runs/*")
    return folder


@pytest.fixture(scope="module")
def metrics(finished_run):
    return read_json(finished_run / "metrics.json")


@pytest.fixture(scope="module")
def per_user(work):
    return pq.read_table(work / "evaluation" / "per_user.parquet").to_pandas()


@pytest.fixture(scope="module")
def sequences(work):
    return read_sequences(work / "prepared" / "sequences.parquet")


def by_hand(rank: np.ndarray) -> dict[str, float]:
    found = {}
    for k in (5, 10):
        hit = (rank > 0) & (rank <= k)
        found[f"recall@{k}"] = hit.mean()
        found[f"ndcg@{k}"] = np.where(hit, 1 / np.log2(np.maximum(rank, 1) + 1), 0).mean()
        found[f"mrr@{k}"] = np.where(hit, 1 / np.maximum(rank, 1), 0).mean()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_metrics_of_a_method_are_those_of_its_ranks(metrics, per_user, sequences, method):
    window = 12
    last = [sequences.history(user, "test")[-window:] for user in range(len(sequences))]
    novel = np.array([t not in h for t, h in zip(sequences.targets("test"), last, strict=True)])
    assert metrics["test/novel/num_users"] == novel.sum()
    assert 0 < novel.sum() < len(novel)
    for prefix, rows in ((f"test/{method}", per_user), (f"test/novel/{method}", per_user[novel])):
        for name, value in by_hand(rows[method].to_numpy()).items():
            assert metrics[f"{prefix}/{name}"] == pytest.approx(value), name
            assert metrics[f"{prefix}/{name}/ci_low"] <= value <= metrics[f"{prefix}/{name}/ci_high"]


def test_targets_are_told_by_their_ids(per_user, sequences, work):
    item_id = pq.read_table(work / "prepared" / "items.parquet")["item_id"].to_numpy()
    assert not np.array_equal(item_id, np.arange(len(item_id)))
    assert np.array_equal(per_user["item_id"], item_id[sequences.targets("test")])
    assert np.array_equal(per_user["user_id"], sequences.user_id)


def test_gain_is_that_of_the_reranked_over_the_generated_order(metrics, per_user):
    before, after = (by_hand(per_user[name].to_numpy()) for name in ("generation", "rerank"))
    for name in before:
        gain = after[name] / before[name] - 1
        assert metrics[f"test/rerank_gain/{name}"] == pytest.approx(gain)
        assert metrics[f"test/rerank_gain/{name}/ci_low"] <= gain


def test_property_5_both_orders_hold_the_same_targets(metrics, per_user):
    assert ((per_user["generation"] > 0) == (per_user["rerank"] > 0)).all()
    assert metrics["test/beam_recall"] == pytest.approx((per_user["generation"] > 0).mean())
    assert metrics["test/rerank/recall@10"] <= metrics["test/beam_recall"]


def test_targets_are_the_last_events(finished_run, per_user):
    table = pq.read_table(finished_run.parent / "data" / "interactions.parquet")
    last = dict(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    assert per_user["item_id"].tolist() == [last[user] for user in per_user["user_id"]]


def test_popularity_and_repeat_recent_from_the_events(per_user, sequences):
    histories = [sequences.history(user, "test").tolist() for user in range(len(sequences))]
    count = np.bincount(np.concatenate(sequences.histories("train")), minlength=100)
    popular = sorted(range(100), key=lambda item: (-count[item], item))
    for user, (target, history) in enumerate(zip(sequences.targets("test"), histories, strict=True)):
        assert per_user["popularity"][user] == popular.index(target) + 1
        recent = list(dict.fromkeys(reversed(history)))
        assert per_user["repeat_recent"][user] == (recent.index(target) + 1 if target in recent else 0)


def test_property_10_what_must_stand_in_the_metrics(metrics):
    for k in (5, 10):
        for name in ("recall", "ndcg", "mrr"):
            for method in ("repeat_recent", "novel/rerank", "novel/generation", "novel/repeat_recent"):
                assert 0 <= metrics[f"test/{method}/{name}@{k}"] <= 1
    assert metrics["test/invalid_sid_rate"] == 0
    assert 0 <= metrics["catalogue/collision_rate"] <= 1
    assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())


def test_property_10_the_collision_rate_is_that_of_the_semantic_ids(metrics, work):
    report = read_json(work / "sids" / "collisions.json")
    assert metrics["catalogue/collision_rate"] == report["collision_rate"]


def test_property_10_what_must_stand_in_the_report(finished_run):
    text = (finished_run / "report.html").read_text()
    for said in ("repeat_recent", "Novel targets only", "Invalid SIDs", "collision rate", "Beam recall"):
        assert said in text


def test_events_of_the_sequences_are_those_of_the_users(finished_run, sequences, work):
    table = pq.read_table(finished_run.parent / "data" / "interactions.parquet")
    item_id = pq.read_table(work / "prepared" / "items.parquet")["item_id"].to_numpy()
    pairs = zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)
    events = {u: [i for i, _ in groupby(i for _, i in rows)] for u, rows in groupby(pairs, lambda p: p[0])}
    for user, user_id in enumerate(sequences.user_id.tolist()):
        assert item_id[sequences.row(user)].tolist() == events[user_id]


@pytest.mark.parametrize(
    ("gain", "invalid", "passes"),
    [(0.1, 0.0, True), (0.0, 0.0, True), (-0.01, 0.0, False), (0.1, 0.01, False)],
)
def test_the_gate_by_hand(gain, invalid, passes):
    config = small.quick("gate.min_gain=0")
    metrics = {"test/rerank_gain/recall@5": gain, "test/invalid_sid_rate": invalid}
    assert passes_gate(metrics, config) is passes
