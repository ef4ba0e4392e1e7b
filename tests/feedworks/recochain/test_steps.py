"""Steps: paths in, paths out; a seed gives the same bytes; what does not fit together is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.tables import ITEMS
from feedworks.errors import DataError, ModelError
from feedworks.recochain import preparation, steps
from feedworks.recochain.catalogue import Catalogue
from feedworks.storage import read_json

from . import small
from .test_chain import contents

CONFIG = small.quick()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_synthetic(folder, num_users=40, num_items=60, mean_events=10, seed=5).folder


def first_steps(data: Path, out: Path, config=CONFIG) -> Path:
    """Everything up to stage II."""
    prepared, tokenizer, sids, generator = (out / name for name in ("data", "tokenizer", "sids", "generator"))
    steps.prepare(data, prepared, config)
    steps.fit_tokenizer(prepared, tokenizer, config)
    steps.assign_ids(prepared, tokenizer, sids, config)
    steps.train_generator(prepared, sids, generator, config)
    steps.mine_candidates(prepared, sids, generator, out / "candidates", config)
    steps.train_joint(prepared, sids, generator, out / "candidates", out / "joint", config)
    return out


def test_one_seed_gives_the_same_bytes_and_another_seed_others(data, tmp_path):
    first, again = (contents(first_steps(data, tmp_path / name)) for name in ("a", "b"))
    assert first == again
    other = contents(first_steps(data, tmp_path / "c", small.quick("seed=1")))
    assert first.keys() == other.keys()
    for name in ("tokenizer/tokenizer.safetensors", "generator/model.safetensors", "joint/model.safetensors"):
        assert first[name] != other[name]
    assert not list(tmp_path.glob("*/*.state"))


def test_reports_of_the_steps(data, tmp_path):
    out = first_steps(data, tmp_path)
    stats = read_json(out / "data" / "stats.json")
    assert (stats["num_users"], stats["num_items"]) == (40, 60)
    errors = read_json(out / "tokenizer" / "fit.json")["error"]
    assert errors == sorted(errors, reverse=True)
    collisions = read_json(out / "sids" / "collisions.json")
    assert collisions["num_sids"] == Catalogue.load(out / "sids").trie.num_sids
    assert 0 <= collisions["collision_rate"] <= 1
    assert len(collisions["usage"]) == len(collisions["perplexity"]) == 3
    mined = read_json(out / "candidates" / "stats.json")
    assert mined["num_examples"] <= 40
    assert 0 <= mined["beam_recall"] <= 1


def test_what_was_prepared_elsewhere_is_taken(data, tmp_path):
    steps.prepare(data, tmp_path / "there", CONFIG)
    # Settings of later steps do not matter, and those that say where do not either.
    here = small.quick(f"prepare.done_in={tmp_path / 'there'}", "generator.lr=1e-3", "search.beam=3")
    assert steps.prepare(data, tmp_path / "here", here) == steps.prepare(data, tmp_path / "again", CONFIG)
    assert contents(tmp_path / "here") == contents(tmp_path / "again")


class Watched:
    """A config that notes which settings are read."""

    def __init__(self, config) -> None:
        self.config, self.seen = config, set()

    def __getattr__(self, name: str):
        self.seen.add(name)
        return getattr(self.config, name)


def test_the_key_holds_all_settings_that_preparation_reads(data, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "preparation_key", lambda *_: "key")
    watched = Watched(small.quick("user_fraction=0.9"))
    steps.prepare(data, tmp_path / "out", watched)
    assert watched.seen == {*preparation.SETTINGS, "prepare"}


@pytest.mark.parametrize("change", ["seed=1", "min_events=4", "user_fraction=0.9", "vectors.window=4"])
def test_what_was_prepared_with_other_settings_is_refused(data, tmp_path, change):
    steps.prepare(data, tmp_path / "there", CONFIG)
    other = small.quick(f"prepare.done_in={tmp_path / 'there'}", change)
    with pytest.raises(DataError, match=r"done_in=.*there was made of other data, .* or with other settings"):
        steps.prepare(data, tmp_path / "here", other)
    assert not (tmp_path / "here").exists()


def test_what_was_prepared_of_other_data_or_not_at_all_is_refused(data, tmp_path):
    steps.prepare(data, tmp_path / "there", CONFIG)
    other = write_synthetic(tmp_path / "data", num_users=40, num_items=60, mean_events=10, seed=6).folder
    with pytest.raises(DataError, match="was made of other data"):
        steps.prepare(other, tmp_path / "here", small.quick(f"prepare.done_in={tmp_path / 'there'}"))
    with pytest.raises(DataError, match="no result of the step `prepare`; run it there"):
        steps.prepare(data, tmp_path / "here", small.quick(f"prepare.done_in={tmp_path / 'nowhere'}"))
    assert not (tmp_path / "here").exists()


def test_items_without_vectors_are_refused_and_nothing_is_written(data, tmp_path):
    for name in ("interactions", "users"):
        (tmp_path / f"{name}.parquet").write_bytes((data / f"{name}.parquet").read_bytes())
    table = pq.read_table(data / "items.parquet")
    empty = pa.nulls(len(table), ITEMS.schema.field("vector").type)
    place = table.schema.get_field_index("vector")
    pq.write_table(table.set_column(place, "vector", empty), tmp_path / "items.parquet")
    with pytest.raises(DataError, match="no item has a vector"):
        steps.prepare(tmp_path, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_catalogue_is_refused(data, tmp_path):
    catalogue = small.catalogue()
    model = small.model(catalogue)
    from feedworks.configuration import to_json
    from feedworks.training.checkpoint import save_model

    save_model(tmp_path, model, to_json(model.config))
    assert not steps.load_recochain(tmp_path, catalogue).training
    with pytest.raises(ModelError):
        steps.load_recochain(tmp_path, small.catalogue(num_items=41))
    with pytest.raises(ModelError):
        steps.load_recochain(tmp_path / "nothing", catalogue)
