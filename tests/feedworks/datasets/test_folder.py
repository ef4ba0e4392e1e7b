import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.tables import ITEMS
from feedworks.datasets import registry
from feedworks.datasets.folder import open_data
from feedworks.errors import DataError


def test_the_word_synthetic_is_generated_into_the_work_folder(tmp_path):
    assert open_data("synthetic", tmp_path / "work") == tmp_path / "work"
    assert read_table(ITEMS, tmp_path / "work").num_rows == 500


def test_a_data_folder_is_returned_as_it_is(tmp_path):
    folder = write_synthetic(tmp_path / "data", num_users=5, num_items=8).folder
    assert open_data(str(folder), tmp_path / "work") == folder
    assert not (tmp_path / "work").exists()


def test_raw_files_are_converted_into_the_work_folder(tmp_path):
    raw = raw_toys(tmp_path)
    assert open_data(raw, tmp_path / "work") == tmp_path / "work"
    assert read_table(ITEMS, tmp_path / "work")["item_id"].to_pylist() == [2, 3]
    assert sorted(p.name for p in raw.iterdir()) == ["Toys.txt", "Toys_item2attributes.json"]


def raw_toys(tmp_path, text="1 2 3\n"):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "Toys.txt").write_text(text)
    (raw / "Toys_item2attributes.json").write_text("{}")
    return raw


def test_no_table_of_earlier_data_stays_among_the_new_ones(tmp_path):
    open_data("synthetic", tmp_path / "work")
    assert (tmp_path / "work" / "users.parquet").exists()
    open_data(raw_toys(tmp_path), tmp_path / "work")
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["interactions.parquet", "items.parquet"]


def test_earlier_data_stay_when_the_new_ones_are_broken(tmp_path):
    open_data("synthetic", tmp_path / "work")
    before = {p.name: p.read_bytes() for p in (tmp_path / "work").iterdir()}
    with pytest.raises(DataError, match=r"Toys.txt, line 1"):
        open_data(raw_toys(tmp_path, text="1 x\n"), tmp_path / "work")
    assert {p.name: p.read_bytes() for p in (tmp_path / "work").iterdir()} == before


def test_a_work_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(thesis.txt\)"):
        open_data("synthetic", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


# Those of texts are known by what stands in the files: test_books.py, test_documents.py.
NAMES = [name for name in registry.names() if registry.get(name).kind != "text"]


@pytest.mark.parametrize("name", NAMES)
def test_each_data_set_knows_its_own_files_and_no_others(tmp_path, name):
    local = {"s3rec": ["Any.txt", "Any_item2attributes.json"], "frappe": ["frappe_train.csv.gz"]}
    files = [file.name for file in registry.get(name).files] or local[name]
    for file in files:
        (tmp_path / file).touch()
    found = registry.detect(tmp_path)
    assert found is not None
    assert found.name == name


def test_retention_data_are_made_and_told_from_others(tmp_path):
    made = open_data("synthetic", tmp_path / "work", kind="retention")
    assert {path.name for path in made.iterdir()} == {
        "events.parquet",
        "catalogue.parquet",
        "profiles.parquet",
    }
    assert open_data(made, tmp_path / "other", kind="retention") == made
    with pytest.raises(DataError, match="this is a retention data folder; expected a data folder"):
        open_data(made, tmp_path / "other")
    with pytest.raises(DataError, match=r"raw files of s3rec.* expected a retention data folder"):
        open_data(raw_toys(tmp_path), tmp_path / "other", kind="retention")


def test_text_is_made_and_told_from_others(tmp_path):
    made = open_data("synthetic", tmp_path / "work", kind="text")
    assert [path.name for path in made.iterdir()] == ["documents.parquet"]
    assert open_data(made, tmp_path / "other", kind="text") == made
    with pytest.raises(DataError, match="this is a text data folder; expected a retention data folder"):
        open_data(made, tmp_path / "other", kind="retention")


def test_an_unknown_source_lists_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="no such folder; give a folder or the word 'synthetic'"):
        open_data(tmp_path / "absent", tmp_path / "work")
    with pytest.raises(DataError) as caught:
        open_data(tmp_path, tmp_path / "work")
    message = str(caught.value)
    assert "\n" not in message
    assert "interactions.parquet, items.parquet, users.parquet (optional)" in message
    assert all((name in message) == (registry.get(name).kind == "interactions") for name in registry.names())
    assert not (tmp_path / "work").exists()


def test_the_registry_names_its_data_sets():
    assert registry.names() == [
        *("amazon_beauty", "amazon_sports", "amazon_toys"),
        *("amazon_beauty_2014", "amazon_sports_2014", "amazon_toys_2014"),
        *("frappe", "kuairand_1k", "kuairand_27k", "kuairand_pure", "movietweetings_100k"),
        *("gutenberg_books", "paul_graham_essays", "tiny_shakespeare", "text_files", "s3rec"),
    ]
    for name in registry.names():
        data_set = registry.get(name)
        assert data_set.licence
        assert data_set.citation
        assert data_set.title
    with pytest.raises(DataError, match="unknown data set 'books'; known: amazon_beauty, "):
        registry.get("books")
