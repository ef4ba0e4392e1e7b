"""Any folder of texts: cleaned, split, streamed; and what is no text is told."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedworks.contracts.files import read_table
from feedworks.contracts.text import DOCUMENTS
from feedworks.datasets import registry
from feedworks.datasets.documents import Document, clean, cut_tail, decode, write_documents
from feedworks.datasets.folder import open_data
from feedworks.errors import DataError
from feedworks.validation.gate import require_valid

LONG = "\n\n".join(f"Paragraph {i} has these words and a few more." for i in range(200))


def rows_of(folder):
    return read_table(DOCUMENTS, folder).to_pylist()


def put(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_few_texts_are_cut_at_paragraphs_and_nothing_is_lost(tmp_path):
    raw = put(tmp_path / "raw", b_dot_txt=LONG, a_dot_txt=LONG.replace("words", "terms"))
    out = open_data(raw, tmp_path / "data", kind="text")
    assert not require_valid(out).warnings
    rows = rows_of(out)
    assert [(r["title"], r["split"]) for r in rows[:3]] == [
        ("a", "train"),
        ("a (before the end)", "valid"),
        ("a (end)", "test"),
    ]
    assert len(rows) == 6
    parts = [row["text"] for row in rows[3:]]
    assert all(part.startswith("Paragraph") for part in parts)
    assert "".join(parts).split() == LONG.split()
    shares = [len(part) / len(LONG) for part in parts]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.01)


def test_many_texts_stay_whole(tmp_path):
    lines = [json.dumps({"text": f"Text number {i}.", "title": f"t{i}"}) for i in range(45)]
    raw = put(tmp_path / "raw", **{"all.jsonl": "\n".join(lines) + "\n\n"})
    rows = rows_of(open_data(raw, tmp_path / "data", kind="text"))
    assert [row["text"] for row in rows] == [f"Text number {i}.\n" for i in range(45)]
    assert [row["document_id"] for row in rows if row["split"] == "valid"] == [9, 29]
    assert [row["document_id"] for row in rows if row["split"] == "test"] == [19, 39]


def test_folders_and_lines_may_name_the_split(tmp_path):
    packed = gzip.compress(json.dumps({"text": "In the test.", "split": "test"}).encode(), mtime=0)
    raw = put(tmp_path / "raw", a_dot_txt="For learning.", valid__b_dot_txt="For choosing.")
    (raw / "c.jsonl.gz").write_bytes(packed)
    out = open_data(raw, tmp_path / "data", kind="text")
    require_valid(out)
    assert {row["split"]: row["text"] for row in rows_of(out)} == {
        "train": "For learning.\n",
        "valid": "For choosing.\n",
        "test": "In the test.\n",
    }


def test_blank_texts_and_repeats_are_left_out_and_said(tmp_path, capsys):
    texts = [f"Text {i}." for i in range(25)] + ["  \n", "Text  3.\r\n", "text 3."]
    write_documents([Document("t", text) for text in texts], tmp_path)
    assert [row["text"] for row in rows_of(tmp_path)] == [f"Text {i}.\n" for i in range(25)] + ["text 3.\n"]
    assert "left out: 1 blank documents, 1 that had come before" in capsys.readouterr().err


def test_documents_are_written_as_they_come(tmp_path, monkeypatch):
    """A corpus larger than memory: at no time are more documents held than one batch."""
    monkeypatch.setattr("feedworks.datasets.documents.BATCH_CHARACTERS", 100)
    alive = []

    def stream():
        for i in range(500):
            alive.append(i)
            yield Document("t", f"Text number {i}.")

    seen = []
    monkeypatch.setattr(
        "feedworks.datasets.documents._split_of", lambda i: seen.append(len(alive) - i) or "train"
    )
    write_documents(stream(), tmp_path)
    assert len(rows_of(tmp_path)) == 500
    assert max(seen) <= 20 + 100 // len("Text number 1.\n") + 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"a\0b", r"a\.txt: holds NUL bytes, so it is no text in UTF-8"),
        ("a.jsonl", b'{"text": "a"}\nnothing\n', r"a\.jsonl, line 2: no JSON"),
        ("a.jsonl", b'["a"]\n', r'a\.jsonl, line 1: expected an object such as \{"text"'),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl, line 1: expected an object"),
        ("a.jsonl", b'{"text": "a", "title": 3}\n', "title and split must be strings"),
        ("a.jsonl", b'{"text": "a", "split": "dev"}\n', "unknown split 'dev'; known are train, valid, test"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "cannot be unpacked"),
        ("a.jsonl.gz", b"plain", "cannot be unpacked"),
        ("a.txt", b" \n", "there is no text in these files"),
        ("a.txt", b"word", "too short to cut 5% off"),
    ],
)
def test_what_is_no_text_is_told(tmp_path, name, content, said):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_data(raw, tmp_path / "data", kind="text")
    assert not (tmp_path / "data").exists()


def test_old_code_pages_are_read(tmp_path):
    assert decode("“Brontë”".encode(), tmp_path) == "“Brontë”"
    assert decode("\ufeffBrontë".encode(), tmp_path) == "Brontë"
    assert decode("“Brontë”".encode("cp1252"), tmp_path) == "“Brontë”"
    assert decode(b"Bront\xeb\x81", tmp_path) == "Brontë\x81"


@given(st.text(alphabet="ab \t\r\n", max_size=60))
def test_clean_keeps_words_and_is_stable(text):
    cleaned = clean(text)
    assert cleaned.split() == text.split()
    assert "\r" not in cleaned
    assert "\n\n\n\n" not in cleaned
    assert " \n" not in cleaned
    assert clean(cleaned) == cleaned


@given(st.lists(st.sampled_from(["word", "\n", "\n\n", " ", "a. "]), min_size=1, max_size=80))
def test_a_tail_is_cut_off_without_loss_or_refused(parts):
    text = clean("".join(parts))
    try:
        head, tail = cut_tail(text, 0.25)
    except DataError:
        return
    assert head.split() + tail.split() == text.split()
    assert 0.1 <= len(tail) / len(text) <= 0.45


def test_a_script_without_gaps_is_cut_between_characters():
    text = clean("字" * 2_000)
    head, tail = cut_tail(text, 0.05)
    assert (head, tail) == ("字" * 1_901 + "\n", "字" * 99 + "\n")


def test_a_short_text_is_told_by_its_name(tmp_path):
    raw = put(tmp_path / "raw", a_dot_txt="one two three " * 200, b_dot_txt="a few words")
    with pytest.raises(DataError, match=r"^b: a text of 12 characters is too short .* bring a longer one"):
        open_data(raw, tmp_path / "data", kind="text")


def test_texts_are_only_thought_of_where_text_is_asked_for(tmp_path):
    """A folder that lacks a file of another data set must not turn into a corpus of its numbers."""
    raw = put(tmp_path / "raw", Toys_dot_txt="1 2 3\n")
    assert registry.detect(raw) is None
    found = registry.detect(raw, "text")
    assert found is not None
    assert found.name == "text_files"
    put(raw, **{"Toys_item2attributes.json": "{}"})
    with pytest.raises(DataError, match="raw files of s3rec"):
        open_data(raw, tmp_path / "data", kind="text")
