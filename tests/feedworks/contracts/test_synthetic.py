import collections
import itertools
import time

import numpy as np
import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.tables import INTERACTIONS, ITEMS, USERS
from feedworks.errors import ConfigError, DataError

HIDDEN_BEFORE = 12  # events that a short window sees; a style must show farther back than that


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("synthetic"), num_users=300, num_items=200, seed=3).folder


def histories(folder):
    events = read_table(INTERACTIONS, folder).to_pandas()
    return {user: rows["item_id"].to_numpy() for user, rows in events.groupby("user_id")}


def styles_and_vectors(folder):
    """Style word of each item (None for chain items) and the unit vectors, both by item id - 1."""
    items = read_table(ITEMS, folder)
    words = [text.split() for text in items["text"].to_pylist()]
    vectors_ND = np.stack(items["vector"].to_numpy(zero_copy_only=False))
    return [w[1] if len(w) == 3 else None for w in words], [w[0] for w in words], vectors_ND


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first, again, other = (
        write_synthetic(tmp_path / name, num_users=50, num_items=60, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for mine, same, different in zip(first[1:], again[1:], other[1:], strict=True):
        assert mine.read_bytes() == same.read_bytes()
        assert mine.read_bytes() != different.read_bytes()


def test_more_users_leave_the_items_as_they_are(tmp_path):
    few = write_synthetic(tmp_path / "few", num_users=10, num_items=60)
    many = write_synthetic(tmp_path / "many", num_users=20, num_items=60)
    assert few.items.read_bytes() == many.items.read_bytes()


def test_the_demo_size_takes_less_than_three_seconds(tmp_path):
    start = time.process_time()
    write_synthetic(tmp_path, num_users=2000, num_items=500)
    assert time.process_time() - start < 3


def test_rows_follow_the_contract(folder):
    events = read_table(INTERACTIONS, folder).to_pandas()
    order = events.sort_values(["user_id", "event_time"], kind="stable").index
    assert (order == events.index).all()
    assert not events.duplicated().any()
    assert events.groupby("user_id").size().between(20, 60).all()
    assert set(read_table(ITEMS, folder)["item_id"].to_pylist()) == set(range(1, 201))
    assert events["item_id"].between(1, 200).all()
    segments = read_table(USERS, folder)["segment"].to_pylist()
    assert len(segments) == 300
    assert len(set(segments)) == 4


def test_content_tells_categories_and_styles_apart(folder):
    style_N, category_N, vectors_ND = styles_and_vectors(folder)
    assert np.allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    cosine_NN = vectors_ND @ vectors_ND.T
    style, category = np.array([s or "" for s in style_N]), np.array(category_N)
    styled_NN = (style != "")[:, None] & (style != "")[None, :]
    same_style_NN = styled_NN & (style[:, None] == style[None, :]) & ~np.eye(len(style), dtype=bool)
    same_category_NN = category[:, None] == category[None, :]
    assert cosine_NN[same_style_NN].min() > 0.9
    assert 0.5 < cosine_NN[styled_NN & same_category_NN & (style[:, None] != style[None, :])].mean() < 0.7
    assert abs(cosine_NN[~same_category_NN].mean()) < 0.1


def test_the_next_chain_item_follows_from_the_last_item(folder):
    style_N, _, _ = styles_and_vectors(folder)
    follows: dict[int, list[int]] = {}
    for items in histories(folder).values():
        for now, after in itertools.pairwise(items):
            if style_N[now - 1] is None and style_N[after - 1] is None:
                follows.setdefault(now, []).append(after)
    successes = [np.unique(after, return_counts=True)[1].max() for after in follows.values()]
    assert sum(successes) / sum(map(len, follows.values())) > 0.85


def test_the_far_history_tells_the_style_and_the_short_window_does_not(folder):
    """Among the items a category's visit may end with, the far history picks the user's style by cosine."""
    style_N, category_N, vectors_ND = styles_and_vectors(folder)
    rivals = {
        category: [i for i, s in enumerate(style_N) if s and category_N[i] == category]
        for category in set(category_N)
    }
    far_hits, near_hits = [], []
    for items in histories(folder).values():
        target = items[-1] - 1
        if style_N[target] is None or len(items) < 40:
            continue
        candidates = rivals[category_N[target]]
        for hits, past in ((far_hits, items[:-HIDDEN_BEFORE]), (near_hits, items[-HIDDEN_BEFORE:-1])):
            score = (vectors_ND[candidates] @ vectors_ND[past - 1].T).max(axis=1)
            best = candidates[int(score.argmax())]
            hits.append(style_N[best] == style_N[target])
    assert len(far_hits) > 20
    assert np.mean(far_hits) > 0.6
    assert np.mean(near_hits) < 0.4


def test_reordering_by_the_far_history_gives_the_recall_that_the_docstring_promises(tmp_path):
    folder = write_synthetic(tmp_path).folder
    style_N, _, vectors_ND = styles_and_vectors(folder)
    train_and_target = [(items[:-2], items[:-1], items[-1]) for items in histories(folder).values()]
    counts = collections.defaultdict(collections.Counter)
    for train, _, _ in train_and_target:
        for now, after in itertools.pairwise(train):
            counts[now][after] += 1
    before, after = [], []
    for _, past, target in train_and_target:
        candidates = [item for item, _ in counts[past[-1]].most_common(20)]
        closeness = (vectors_ND[np.array(candidates) - 1] @ vectors_ND[past - 1].T).max(axis=1)
        scores = [
            counts[past[-1]][item] * (1 if style_N[item - 1] is None else 6 if close > 0.9 else 0.1)
            for item, close in zip(candidates, closeness, strict=True)
        ]
        before.append(target in candidates[:5])
        after.append(target in [candidates[i] for i in np.argsort(-np.array(scores))[:5]])
    assert np.mean(before) == pytest.approx(0.51, abs=0.01)
    assert np.mean(after) == pytest.approx(0.68, abs=0.01)


@pytest.mark.parametrize(("num_items", "num_users"), [(8, 1), (9, 3), (16, 2), (63, 5), (100, 5), (501, 5)])
def test_awkward_sizes_work(tmp_path, num_items, num_users):
    folder = write_synthetic(tmp_path, num_users=num_users, num_items=num_items, mean_events=5).folder
    assert read_table(ITEMS, folder).num_rows == num_items
    assert read_table(USERS, folder).num_rows == num_users


def test_arguments_out_of_range_are_named(tmp_path):
    with pytest.raises(ConfigError, match="num_items is 3, it must be at least 8"):
        write_synthetic(tmp_path / "data", num_items=3)
    assert not (tmp_path / "data").exists()
    with pytest.raises(DataError):
        read_table(ITEMS, tmp_path / "data")
