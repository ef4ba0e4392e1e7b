"""The gate on documents: each way in which they can be wrong is seen and named."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.text import DOCUMENTS
from feedworks.errors import DataError
from feedworks.validation.gate import require_valid, validate_folder

GOOD = {
    "document_id": [0, 1, 2, 5],
    "title": ["a", "a", "b", "c"],
    "split": ["train", "train", "valid", "test"],
    "text": ["One.\n", "Two.\n", "Three.\n", "Four.\n"],
}


def write(folder, text_type=None, **changes):
    rows = {**GOOD, **changes}
    types = {"document_id": pa.int64(), "text": text_type or pa.string()}
    arrays = {name: pa.array(values, types.get(name, pa.string())) for name, values in rows.items()}
    pq.write_table(pa.table(arrays), DOCUMENTS.path(folder))
    return folder


def message(folder):
    with pytest.raises(DataError) as caught:
        require_valid(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string()])
def test_good_documents_pass_however_long_their_offsets_are(tmp_path, text_type):
    result = require_valid(write(tmp_path, text_type))
    assert result.rows == {"documents": 4}
    assert not result.warnings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": ["One.\n", " \n", "Three.\n", ""]}, "text: 2 of 4 rows hold no character but spaces"),
        (
            {"text": ["One.\n", "Two\0.\n", "Three.\n", "Four.\n"]},
            "text: 1 of 4 rows hold NUL or broken UTF-8",
        ),
        ({"text": ["One.\n", None, "Three.\n", "Four.\n"]}, "text: 1 of 4 rows are null"),
        ({"text": ["One.\n", "Two.\n", "Three.\n", "One."]}, "text: 1 of 4 rows stand in another split too"),
        ({"text": ["A  b\n", "Two.\n", "Three.\n", "A\nb"]}, "document_id=5"),
        ({"document_id": [0, 1, 1, 5]}, "document_id: 2 of 4 rows repeat the key"),
        ({"document_id": [1, 0, 2, 5]}, "document_id: 1 of 4 rows stand out of the order document_id"),
        ({"document_id": [-1, 1, 2, 5]}, "document_id: 1 of 4 rows are below 0"),
        ({"split": ["train", "dev", "valid", "test"]}, "split: 1 of 4 rows are none of train, valid, test"),
        ({"split": ["train", "train", "valid", "valid"]}, "split: 4 of 4 rows are not test"),
        ({"split": ["train", None, "valid", "test"]}, "split: 1 of 4 rows are null"),
        ({"title": ["a", None, "b", "c"]}, "title: 1 of 4 rows are null"),
    ],
)
def test_each_breach_is_named(tmp_path, changes, said):
    assert said in message(write(tmp_path, **changes))


def test_broken_utf8_is_seen(tmp_path):
    texts = pa.array([b"One.\n", b"Tw\xff\xfeo\n", b"Three.\n", b"Four.\n"], pa.binary()).cast(
        pa.string(), safe=False
    )
    rows = {name: pa.array(values) for name, values in GOOD.items()}
    pq.write_table(pa.table({**rows, "text": texts}), DOCUMENTS.path(tmp_path))
    assert "text: 1 of 4 rows hold NUL or broken UTF-8" in message(tmp_path)


def test_the_same_text_twice_in_one_split_is_a_warning(tmp_path):
    write(tmp_path, text=["One.\n", "One.\n", "Three.\n", "Four.\n"])
    result = validate_folder(tmp_path)
    assert result.success
    assert [(c.column, c.count) for c in result.warnings] == [("text", 1)]
    assert "repeat another row's" in result.warnings[0].problem


def long_text(numbers):
    return "".join(
        f"This is sentence {i:05}, which is said in this text and in few others.\n" for i in numbers
    )


def test_another_edition_of_a_text_is_a_warning(tmp_path):
    """The same book with another preface in another split; what is only quoted passes."""
    book = long_text(range(200))
    edition, quoting = (
        long_text(range(500, 540)) + book,
        long_text(range(160, 200)) + long_text(range(900, 1100)),
    )
    write(tmp_path, text=[book, long_text(range(2000, 2200)), quoting, edition])
    result = validate_folder(tmp_path)
    assert result.success
    (warning,) = result.warnings
    assert warning.problem == "have half of their sentences in another split too"
    # The book, most of which is in the edition, and the edition itself.
    assert [example.partition(":")[0] for example in warning.examples] == ["row 0", "row 3"]


def test_a_leak_is_seen_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("feedworks.validation.structure.ROW_GROUP_ROWS", 1)
    write(tmp_path, text=["One.\n", "Two.\n", "Three.\n", "Two."])
    assert "row 3: document_id=5" in message(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [("text", "column text: is missing"), ("split", "column split: is missing")]
)
def test_a_missing_column_and_a_missing_file_are_told(tmp_path, name, said):
    pq.write_table(pa.table({k: v for k, v in GOOD.items() if k != name}), DOCUMENTS.path(tmp_path))
    assert said in message(tmp_path)
    DOCUMENTS.path(tmp_path).unlink()
    with pytest.raises(DataError, match=r"is missing; .* a data folder holds documents\.parquet"):
        require_valid(tmp_path, kind="text")


def test_ids_of_another_type_are_told(tmp_path):
    pq.write_table(pa.table({**GOOD, "document_id": ["a", "b", "c", "d"]}), DOCUMENTS.path(tmp_path))
    assert "document_id: has type string, not int64" in message(tmp_path)
