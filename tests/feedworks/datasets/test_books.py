"""Books of Project Gutenberg, essays and Shakespeare: what their owners add goes, the splits stay apart."""

import hashlib
import io
import zipfile

import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.text import DOCUMENTS
from feedworks.datasets import registry
from feedworks.datasets.books import strip_gutenberg
from feedworks.datasets.folder import open_data
from feedworks.errors import DataError
from feedworks.validation.gate import require_valid

BODY = "\r\n\r\n".join(f"Chapter {i} has its words.\r\nAnd a second line." for i in range(100))


def book(number, title, body=BODY, start="*** START OF THIS PROJECT GUTENBERG EBOOK {} ***", extra=""):
    return (
        f"\ufeffThe Project Gutenberg EBook of {title}\r\n\r\nTitle: {title}\r\n\r\n"
        f"Release Date: 2001 [EBook #{number}]\r\n\r\n{start.format(title.upper())}\r\n\r\n\r\n"
        f"Produced by Somebody; and\r\nothers\r\n\r\n{extra}{body}\r\n\r\n\r\n"
        f"End of Project Gutenberg's {title}\r\n\r\n*** END OF THIS PROJECT GUTENBERG EBOOK "
        f"{title.upper()} ***\r\n\r\nA licence of many lines.\r\n"
    )


def rows_of(folder):
    return read_table(DOCUMENTS, folder).to_pylist()


@pytest.fixture
def shelf(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, title in ((1342, "Pride"), (4300, "Ulysses"), (345, "Dracula")):
        body = BODY.replace("words", title)
        (raw / f"{title}_{number}.txt").write_bytes(book(number, title, body).encode())
    (raw / "README.md").write_text("Books of Project Gutenberg.")
    return raw


def test_the_header_the_licence_and_the_credits_go(tmp_path):
    text = book(1, "Any", extra="[Project Gutenberg Editor's Note: there\r\nis another.]\r\n")
    found = strip_gutenberg(text, tmp_path)
    assert found == BODY.replace("\r\n", "\n") + "\n"
    compact = book(1, "Any", start="***START OF THE PROJECT GUTENBERG EBOOK {}***")
    assert strip_gutenberg(compact, tmp_path) == found


def test_what_only_looks_like_a_mark_stays(tmp_path):
    body = "One.\r\n\r\n*****\r\n\r\n* * *\r\n\r\nTwo by the end of it all."
    assert strip_gutenberg(book(1, "Any", body), tmp_path) == body.replace("\r\n", "\n") + "\n"


@pytest.mark.parametrize("mark", ["START", "END"])
def test_a_book_without_its_marks_is_told(tmp_path, mark):
    text = (
        book(1, "Any")
        .replace(f"*** {mark} OF", "*** MIDDLE OF")
        .replace("End of Project", "End of a Project")
    )
    (tmp_path / "Any_1.txt").write_text(text)
    with pytest.raises(DataError, match=rf"Any_1\.txt: no line '\*\*\* {mark} OF' of Project Gutenberg"):
        open_data(tmp_path, tmp_path / "data", kind="text")


def test_ulysses_and_dracula_are_kept_for_testing(shelf, tmp_path):
    found = registry.detect(shelf)
    assert found is not None
    assert found.name == "gutenberg_books"
    out = open_data(shelf, tmp_path / "data", kind="text")
    assert not require_valid(out).warnings
    rows = rows_of(out)
    assert [(row["title"], row["split"]) for row in rows] == [
        ("Dracula", "test"),
        ("Pride", "train"),
        ("Pride (end)", "valid"),
        ("Ulysses", "test"),
    ]
    pieces = [row["text"] for row in rows if row["title"].startswith("Pride")]
    assert "".join(pieces).split() == BODY.replace("words", "Pride").split()
    assert len(pieces[1]) / sum(map(len, pieces)) == pytest.approx(0.05, abs=0.02)


def test_other_books_give_all_splits_by_their_ends(shelf, tmp_path):
    for name in ("Ulysses_4300.txt", "Dracula_345.txt"):
        (shelf / name).unlink()
    out = open_data(shelf, tmp_path / "data", kind="text")
    require_valid(out)
    assert [row["split"] for row in rows_of(out)] == ["train", "valid", "test"]


def test_a_book_without_a_title_is_called_by_its_file(shelf, tmp_path):
    path = shelf / "Pride_1342.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("Title: Pride", ""), encoding="utf-8")
    titles = [row["title"] for row in rows_of(open_data(shelf, tmp_path / "data", kind="text"))]
    assert "Pride_1342" in titles


def zipped(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


def test_essays_are_read_from_their_archive_each_in_one_split(tmp_path):
    essays = {f"essay{i:02}.txt": f"Essay number {i}." for i in range(21)}
    path = tmp_path / "raw" / "paul_graham_essays.zip"
    path.parent.mkdir()
    path.write_bytes(zipped(**essays, **{"about.md": "no essay"}))
    rows = rows_of(open_data(path.parent, tmp_path / "data", kind="text"))
    assert [row["title"] for row in rows] == [f"essay{i:02}" for i in range(21)]
    assert [rows[i]["split"] for i in (0, 9, 19, 20)] == ["train", "valid", "test", "train"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-30], lambda b: b"no zip", lambda b: b.replace(b"Essay", b"XXXXX")]
)
def test_a_damaged_archive_is_told(tmp_path, damage):
    path = tmp_path / "paul_graham_essays.zip"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as stored:  # not compressed, so that its text can be changed
        for i in range(21):
            stored.writestr(f"{i}.txt", f"Essay {i}.")
    path.write_bytes(damage(archive.getvalue()))
    with pytest.raises(DataError, match=r"paul_graham_essays\.zip: cannot be unpacked"):
        open_data(tmp_path, tmp_path / "data", kind="text")


def test_shakespeare_is_seen_by_its_first_words(tmp_path):
    lines = "\n\n".join(f"First Citizen:\nLine {i} of the play." for i in range(100))
    (tmp_path / "input.txt").write_text(lines)
    found = registry.detect(tmp_path)
    assert found is not None
    assert found.name == "tiny_shakespeare"
    rows = rows_of(open_data(tmp_path, tmp_path / "data", kind="text"))
    assert [row["split"] for row in rows] == ["train", "valid", "test"]
    (tmp_path / "input.txt").write_text("Anything else.")
    assert registry.detect(tmp_path) is None


@pytest.mark.real_data
def test_the_real_books_lose_their_frames_and_nothing_else(real_data, tmp_path):
    folder = real_data / "gutenberg_books"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    out = open_data(folder, tmp_path / "data", kind="text")
    assert not require_valid(out).warnings
    rows = rows_of(out)
    assert {row["title"] for row in rows if row["split"] == "test"} == {"Dracula", "Ulysses"}
    assert sorted(row["split"] for row in rows).count("train") == 8
    for row in rows:
        text = row["text"]
        assert "EBOOK" not in text
        assert "Gutenberg-tm" not in text
        assert "\r" not in text
        assert "Produced by" not in text
    # What goes is the header and the licence, some 20,000 characters a book, and spaces at the ends of lines.
    raw = sum(len(path.read_bytes().decode().replace("\r", "")) for path in folder.glob("*.txt"))
    kept = sum(len(row["text"]) for row in rows)
    assert 0.975 < kept / raw < 0.995
    pride = next(row["text"] for row in rows if row["title"] == "Pride and Prejudice")
    assert pride.startswith("PRIDE AND PREJUDICE\n\nBy Jane Austen")
    assert "It is a truth universally acknowledged" in pride[:200]


@pytest.mark.real_data
def test_the_real_files_are_those_of_the_registry(real_data, tmp_path):
    for name, documents in (("gutenberg_books", 18), ("tiny_shakespeare", 3), ("paul_graham_essays", 49)):
        folder = real_data / name
        if not folder.is_dir():
            pytest.skip(f"no folder {folder}")
        for file in registry.get(name).files:
            assert hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
        out = open_data(folder, tmp_path / name, kind="text")
        assert require_valid(out).rows == {"documents": documents}
