from __future__ import annotations

import gzip

import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.ranking import read_fields
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.synthetic_ranking import write_synthetic_ranking
from feedworks.datasets import registry
from feedworks.datasets.folder import open_data
from feedworks.errors import DataError
from feedworks.validation.gate import require_valid

HEADER = "label,user,item,daytime,weekday,isweekend,homework,cost,weather,country,city"
ROWS = {
    "train": "1,4,9,0,1,0,2,1,3,0,8\n0,4,2,0,1,0,2,0,3,0,8",
    "valid": "1,0,0,6,0,1,0,0,0,0,0\n0,0,1,6,0,1,0,0,0,0,0",
}


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        write(folder, split, f"{HEADER}\n{ROWS.get(split, ROWS['valid'])}\n")
    return folder


def write(folder, split, text):
    (folder / f"frappe_{split}.csv.gz").write_bytes(gzip.compress(text.encode()))


def test_the_files_become_a_valid_ranking_folder(raw, tmp_path):
    folder = open_data(raw, tmp_path / "data", kind="ranking")
    assert require_valid(folder).rows == {"train": 2, "valid": 2, "test": 2}
    fields = read_fields(folder)
    assert [(field.name, field.size) for field in fields.of_item] == [("item", 10), ("cost", 2)]
    assert [(field.name, field.side, field.size) for field in fields.of_user] == [
        *(("user", "user", 5), ("daytime", "context", 7), ("weekday", "context", 2)),
        *(("isweekend", "context", 2), ("homework", "context", 3), ("weather", "context", 4)),
        *(("country", "context", 1), ("city", "context", 9)),
    ]
    train = read_table(fields.tables()[0], folder).to_pylist()
    assert train[0] == {
        "label": 1,
        "user": 4,
        "item": 9,
        "daytime": 0,
        "weekday": 1,
        "isweekend": 0,
        "homework": 2,
        "cost": 1,
        "weather": 3,
        "country": 0,
        "city": 8,
    }


def test_a_missing_file(raw, tmp_path):
    (raw / "frappe_test.csv.gz").unlink()
    with pytest.raises(DataError, match=r"frappe_test.csv.gz is missing; copy the three files"):
        open_data(raw, tmp_path / "data", kind="ranking")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{HEADER}\n1,4,x,0,1,0,2,1,3,0,8\n", "cannot be read"),
        (f"{HEADER}\n1,4\n", "cannot be read"),
        ("", "cannot be read"),
        (HEADER + "\n", "has no rows"),
        ("label,user\n1,2\n", r"lacks columns \['daytime', "),
        (f"{HEADER}\n1,4,-9,0,1,0,2,1,3,0,8\n", "column item has empty or negative ids"),
        (f"{HEADER}\n1,,9,0,1,0,2,1,3,0,8\n", "column user has empty or negative ids"),
    ],
)
def test_a_file_of_another_form(raw, tmp_path, text, problem):
    write(raw, "valid", text)
    with pytest.raises(DataError, match=rf"frappe_valid.csv.gz: {problem}.*; copy the file again") as caught:
        open_data(raw, tmp_path / "data", kind="ranking")
    assert "\n" not in str(caught.value)


def test_a_truncated_file(raw, tmp_path):
    path = raw / "frappe_train.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"frappe_train.csv.gz: cannot be read"):
        open_data(raw, tmp_path / "data", kind="ranking")


def test_data_of_the_other_kind_are_refused_with_what_they_are(raw, tmp_path):
    ranking = write_synthetic_ranking(tmp_path / "r", num_users=5, num_items=20, num_rows=100)
    interactions = write_synthetic(tmp_path / "i", num_users=5, num_items=8).folder
    work = tmp_path / "work"
    with pytest.raises(
        DataError, match=r"this is a ranking data folder; expected a data folder \(interactions"
    ):
        open_data(ranking, work)
    with pytest.raises(DataError, match=r"raw files of frappe, which makes a ranking data folder; expected"):
        open_data(raw, work)
    with pytest.raises(
        DataError, match=r"this is a data folder; expected a ranking data folder \(train.parquet"
    ):
        open_data(interactions, work, kind="ranking")
    with pytest.raises(
        DataError, match=r"nothing known in it; .* or raw files of frappe: frappe_train.csv.gz, "
    ):
        open_data(tmp_path, work, kind="ranking")
    assert open_data(ranking, work, kind="ranking") == ranking
    assert not work.exists()


def test_the_word_synthetic_is_generated_as_either_kind_in_the_place_of_the_other(tmp_path):
    work = tmp_path / "work"
    open_data("synthetic", work)
    open_data("synthetic", work, kind="ranking")
    assert sorted(path.name for path in work.iterdir()) == [
        "fields.json",
        "test.parquet",
        "train.parquet",
        "valid.parquet",
    ]


def test_frappe_has_no_address_and_says_its_terms():
    frappe = registry.get("frappe")
    assert frappe.files == ()
    assert "no redistribution" in frappe.licence


@pytest.mark.real_data
def test_the_real_files(tmp_path, real_data):
    folder = open_data(real_data / "frappe", tmp_path / "data", kind="ranking")
    assert require_valid(folder).rows == {"train": 202_794, "valid": 57_722, "test": 28_860}
    fields = read_fields(folder).fields
    assert sum(field.size for field in fields) == 5382
