import numpy as np
import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.ranking import read_fields
from feedworks.contracts.synthetic_ranking import planted_parts, write_synthetic_ranking
from feedworks.errors import ConfigError
from feedworks.metrics.classification import auc

SMALL = {"num_users": 40, "num_items": 30, "num_rows": 500}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_synthetic_ranking(tmp_path_factory.mktemp("ranking"))


def split(folder, name):
    table = next(table for table in read_fields(folder).tables() if table.name == name)
    return read_table(table, folder).to_pandas()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first, again, other = (
        write_synthetic_ranking(tmp_path / name, **SMALL, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name in ("train.parquet", "valid.parquet", "test.parquet", "fields.json"):
        content = (first / name).read_bytes()
        assert content == (again / name).read_bytes()
        assert (content == (other / name).read_bytes()) == (name == "fields.json")


def test_the_splits_are_different_rows_of_one_world(folder):
    rows = {name: split(folder, name) for name in ("train", "valid", "test")}
    assert {name: len(frame) for name, frame in rows.items()} == {
        "train": 30_000,
        "valid": 6000,
        "test": 6000,
    }
    assert not rows["valid"].equals(rows["test"])
    for fixed, key in ((["category", "price"], "item"), (["segment", "last_1", "last_8"], "user")):
        both = np.concatenate([frame[[key, *fixed]].drop_duplicates() for frame in rows.values()])
        assert len(np.unique(both, axis=0)) == len(np.unique(both[:, 0]))


def test_what_is_planted_is_there_as_much_as_the_docstring_says(folder):
    label, parts = split(folder, "test")["label"], planted_parts("test")
    assert auc(label, parts.logit) == pytest.approx(0.865, abs=5e-4)
    assert auc(label, parts.logit - parts.history) == pytest.approx(0.832, abs=5e-4)
    assert auc(label, parts.popularity) == pytest.approx(0.605, abs=5e-4)
    assert label.mean() == pytest.approx((1 / (1 + np.exp(-parts.logit))).mean(), abs=0.02)


def test_a_history_has_its_empty_places_at_the_end(folder):
    places = split(folder, "train").filter(like="last_").to_numpy()
    assert ((places[:, 1:] == 0) | (places[:, :-1] > 0)).all()
    assert (places == 0).all(axis=1).any()  # a user without history
    assert (places > 0).all(axis=1).any()


@pytest.mark.parametrize("change", [{"num_users": 0}, {"num_items": 19}, {"num_rows": 99}, {"seed": -1}])
def test_arguments_out_of_range_are_refused(tmp_path, change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))} is .*, it must be at least"):
        write_synthetic_ranking(tmp_path, **(SMALL | change))
