"""The packaged model answers as it was evaluated, whoever else is in the batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from feedworks.configuration import to_json
from feedworks.errors import DataError, ModelError
from feedworks.recochain.recommender import Recommender, Request
from feedworks.recochain.tokenizer import Tokenizer

from . import small

UNKNOWN = 10**6


@pytest.fixture(scope="module")
def recommender(packaged_model):
    return Recommender.load(packaged_model, device="cpu")


@pytest.fixture(scope="module")
def histories(finished_run) -> dict[int, list[int]]:
    """All events of each user, as a client would send them."""
    table = pq.read_table(finished_run.parent / "data" / "interactions.parquet")
    pairs = zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)
    return {user: [item for _, item in rows] for user, rows in groupby(pairs, key=lambda pair: pair[0])}


def test_it_gives_the_order_that_was_evaluated(recommender, histories, finished_run):
    (evaluation,) = finished_run.glob("work/runs/*/evaluation")
    per_user = pq.read_table(evaluation / "per_user.parquet")
    users = per_user["user_id"].to_pylist()
    collapsed = [[item for item, _ in groupby(histories[user])] for user in users]
    requests = [Request(events[:-1], 20) for events in collapsed]
    ranks = []
    for start in range(0, len(users), 64):
        for events, response in zip(
            collapsed[start:], recommender.recommend(requests[start : start + 64]), strict=False
        ):
            items = [item.item_id for item in response.items]
            ranks.append(items.index(events[-1]) + 1 if events[-1] in items else 0)
            assert (response.skipped, response.fallback) == ([], None)
    assert ranks == per_user["rerank"].to_pylist()


def test_repeats_in_a_row_count_once_as_in_training(recommender, histories):
    events = [item for item, _ in groupby(histories[1])]
    once, twice = recommender.recommend(
        [Request(events, 5), Request([item for item in events for _ in range(2)], 5)]
    )
    assert [item.item_id for item in once.items] == [item.item_id for item in twice.items]


def test_the_batch_does_not_change_an_answer(recommender, histories):
    requests = [Request(events[:length], 20) for events, length in zip(
        list(histories.values())[:24], [1, 2, 3, 5, 8, 13, 21, 34] * 3, strict=True)]  # fmt: skip
    together = recommender.recommend(requests)
    for request, response in zip(requests, together, strict=True):
        (alone,) = recommender.recommend([request])
        scores = {item.item_id: item.score for item in alone.items}
        assert scores.keys() == {item.item_id for item in response.items}
        for item in response.items:
            assert item.score == pytest.approx(scores[item.item_id], abs=1e-5)


def test_k_cuts_the_list_and_is_cut_to_the_beam(recommender, histories):
    assert recommender.max_k == 20
    lengths = {}
    for k in (1, 7, 20, 1000):
        (response,) = recommender.recommend([Request(histories[1], k)])
        lengths[k] = [item.item_id for item in response.items]
        assert len(set(lengths[k])) == len(lengths[k])
        scores = [item.score for item in response.items]
        assert scores == sorted(scores, reverse=True)
    assert [len(items) for items in lengths.values()] == [1, 7, 20, 20]
    assert lengths[7] == lengths[1000][:7]


def test_semantic_ids_are_those_of_the_items(recommender, histories):
    (response,) = recommender.recommend([Request(histories[1], 20)])
    catalogue = recommender._catalogue
    for item in response.items:
        row = catalogue.item_id_N.tolist().index(item.item_id)
        assert item.sid == tuple(catalogue.code_NL[row].tolist())


def test_unknown_items_are_skipped_and_a_user_without_known_ones_gets_the_popular(recommender, histories):
    known = histories[1]
    mixed, plain, nothing, unknown = recommender.recommend(
        [
            Request([UNKNOWN, *known, UNKNOWN + 1], 5),
            Request(known, 5),
            Request([], 5),
            Request([UNKNOWN], 100),
        ]
    )
    assert mixed.skipped == [UNKNOWN, UNKNOWN + 1]
    assert [item.item_id for item in mixed.items] == [item.item_id for item in plain.items]
    assert (nothing.skipped, nothing.fallback) == ([], "popularity")
    assert (unknown.skipped, unknown.fallback) == ([UNKNOWN], "popularity")
    assert [item.score for item in nothing.items] == sorted(
        recommender._catalogue.count_N.tolist(), reverse=True
    )[:5]
    assert len(unknown.items) == recommender.max_k
    assert recommender.recommend([]) == []


def test_an_unseen_item_is_read_by_its_vector_and_never_recommended(recommender, histories):
    vectors = recommender._catalogue.vector_NV
    like_first, like_last = vectors[0].tolist(), vectors[99].tolist()
    history = histories[1][:3]
    known, first, last, scaled = recommender.recommend(
        [
            Request(history, 20),
            Request([*history, UNKNOWN], 20, {UNKNOWN: like_first}),
            # The same id may mean another item in another request.
            Request([*history, UNKNOWN], 20, {UNKNOWN: like_last}),
            Request([*history, UNKNOWN], 20, {UNKNOWN: [1e30 * value for value in like_first]}),
        ]
    )
    assert first.skipped == last.skipped == []
    answers = [{item.item_id: item.score for item in r.items} for r in (known, first, last, scaled)]
    assert all(UNKNOWN not in answer for answer in answers)
    assert answers[1] != answers[0]
    assert answers[1] != answers[2]
    assert answers[3] == pytest.approx(answers[1], abs=1e-4)
    (alone,) = recommender.recommend([Request([UNKNOWN], 5, {UNKNOWN: like_first})])
    assert alone.fallback is None
    # A vector for a known item, or for one outside the history, changes nothing.
    (again,) = recommender.recommend([Request(history, 20, {history[0]: like_last, UNKNOWN: like_last})])
    assert [item.item_id for item in again.items] == [item.item_id for item in known.items]


@pytest.mark.parametrize(
    ("vector", "said"),
    [([1.0], "got 1$"), ([float("nan")] * 32, "NaN or infinity"), ([float("inf")] * 32, "NaN or infinity")],
)
def test_unfit_vectors_are_refused(recommender, vector, said):
    with pytest.raises(DataError, match=rf"vector of item {UNKNOWN}: expected 32 finite numbers, .*{said}"):
        recommender.recommend([Request([UNKNOWN], 5, {UNKNOWN: vector})])


def test_items_of_the_history_are_left_out_where_the_protocol_says_so():
    catalogue = small.catalogue()
    tokenizer = Tokenizer(torch.zeros(3, 5, 6), normalise=False)
    config = small.quick("search.beam=40", "search.bucket_cap=40", "exclude_seen=true")
    made = Recommender(small.model(catalogue), catalogue, tokenizer, config, "tag")
    history = catalogue.item_id_N[:30].tolist()
    (response,) = made.recommend([Request(history, 100)])
    assert sorted(item.item_id for item in response.items) == sorted(catalogue.item_id_N[30:].tolist())
    (response,) = made.recommend([Request(catalogue.item_id_N.tolist(), 100)])
    assert response.items == []


def test_incomplete_folders_are_refused(packaged_model, tmp_path):
    with pytest.raises(ModelError):
        Recommender.load(tmp_path)
    for missing in ("catalogue.safetensors", "tokenizer.safetensors", "model.safetensors", "config.json"):
        folder = tmp_path / missing
        folder.mkdir()
        for path in packaged_model.iterdir():
            if path.name != missing:
                (folder / path.name).write_bytes(path.read_bytes())
        with pytest.raises(ModelError, match=missing.split(".")[0]):
            Recommender.load(folder)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads((folder / "config.json").read_text())
    settings = json.loads(facts["config"])
    change(settings)
    facts["config"] = json.dumps(settings)
    (folder / "config.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("name", ["catalogue.safetensors", "tokenizer.safetensors", "model.safetensors"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b[: len(b) // 2]])
def test_a_damaged_file_is_refused(packaged_model, tmp_path, name, damage):
    folder = shutil.copytree(packaged_model, tmp_path / "model")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(ModelError, match=r"is damaged.* package the model again"):
        Recommender.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["search"].update(beam="20"), r"config\.json: setting search\.beam='20'"),
        (lambda c: c["search"].update(beam=0), r"config\.json: search\.beam=0"),
        (lambda c: c.pop("seed"), r"config\.json: .*missing fields \['seed'\]"),
    ],
)
def test_changed_settings_that_cannot_work_are_refused(packaged_model, tmp_path, change, said):
    folder = shutil.copytree(packaged_model, tmp_path / "model")
    rewritten(folder, change)
    with pytest.raises(ModelError, match=said):
        Recommender.load(folder)


def test_what_was_loaded_is_what_was_packaged(recommender, packaged_model):
    again = Recommender.load(packaged_model, device="cpu")
    assert again.tag == recommender.tag
    assert again.tag.startswith("recochain:")
    assert to_json(again._config) == to_json(recommender._config)
    assert again.vector_width == 32
    for one, other in zip(again._model.parameters(), recommender._model.parameters(), strict=True):
        assert np.array_equal(one.detach().numpy(), other.detach().numpy())
