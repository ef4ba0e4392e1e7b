"""The real Beauty files against the counts and the popularity figures published for this preprocessing."""

import hashlib

import numpy as np
import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.tables import INTERACTIONS, ITEMS
from feedworks.datasets import registry
from feedworks.datasets.folder import open_data
from feedworks.validation.gate import require_valid

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def beauty_folder(real_data):
    folder = real_data / "amazon_beauty"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


@pytest.fixture(scope="module")
def beauty(beauty_folder, tmp_path_factory):
    return open_data(beauty_folder, tmp_path_factory.mktemp("beauty"))


def test_beauty_has_the_published_counts(beauty):
    events = read_table(INTERACTIONS, beauty)
    items = read_table(ITEMS, beauty)
    assert (events.num_rows, items.num_rows) == (198_502, 12_101)
    assert len(events["user_id"].unique()) == 22_363
    assert items["item_id"].to_pylist() == list(range(1, 12_102))
    assert items["external_id"].null_count == items["text"].null_count == 0


def test_the_files_are_those_of_the_registry(beauty_folder):
    files = registry.get("amazon_beauty").files
    assert len(files) == 4
    for file in files:
        assert hashlib.sha256((beauty_folder / file.name).read_bytes()).hexdigest() == file.sha256


def test_popularity_gives_the_published_figures(beauty):
    """Train counts, leave-one-out, full ranking without the items the user already has, ties by item id."""
    events = read_table(INTERACTIONS, beauty, ["user_id", "item_id"])
    user_E, item_E = events["user_id"].to_numpy(), events["item_id"].to_numpy()
    histories = np.split(item_E, np.flatnonzero(np.diff(user_E)) + 1)
    counts = np.bincount(np.concatenate([h[:-2] for h in histories]), minlength=12_102)
    rank_of_item = np.empty(len(counts), np.int64)
    rank_of_item[np.lexsort((np.arange(len(counts)), -counts))] = np.arange(len(counts))
    places = []
    for history in histories:
        rank_H = rank_of_item[history]
        places.append(rank_H[-1] - np.count_nonzero(rank_H[:-1] < rank_H[-1]))
    place_U = np.array(places)
    for k, hit, ndcg in ((5, 0.0075, 0.0041), (10, 0.0115, 0.0055)):
        inside = place_U < k
        assert inside.mean().round(4) == pytest.approx(hit)
        assert np.where(inside, 1 / np.log2(place_U + 2), 0).mean().round(4) == pytest.approx(ndcg)


def test_beauty_passes_the_gate(beauty):
    result = require_valid(beauty)
    assert result.rows == {"items": 12_101, "interactions": 198_502}
    assert result.warnings == ()
