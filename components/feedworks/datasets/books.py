"""Long texts that many people measure on: books of Project Gutenberg, Paul Graham's essays, Shakespeare.

Books of Project Gutenberg stand between a header and a licence of some 20,000 characters; both go, so that a
model neither learns nor is measured on them. Ulysses (4300) and Dracula (345) are kept for testing. Of every
other book the last 5 % are for validation: known authors and people, unknown text.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from feedworks.datasets.documents import HELD_OUT_SHARE, Document, clean, cut_tail, decode, write_documents
from feedworks.errors import DataError

ULYSSES, DRACULA = 4300, 345
ESSAYS = "paul_graham_essays.zip"
SHAKESPEARE = "input.txt"
_SPEAKER = b"First Citizen:"
HEAD_BYTES = 4096
MAX_ESSAY_BYTES = 10_000_000
_GUTENBERG = re.compile(rb"project gutenberg", re.IGNORECASE)
_START = re.compile(r"^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG EBOOK[^*]*\*\*\*", re.M | re.I)
_END = re.compile(
    r"^(?:\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG|End of (?:the )?Project Gutenberg)", re.M | re.I
)
_NUMBER = re.compile(r"\[E-?Book #(\d+)\]", re.IGNORECASE)
_TITLE = re.compile(r"^Title: *(.+)$", re.MULTILINE)
# Who typed the book in, and what the editors add: not the author's words.
_CREDIT = re.compile(r"(?:Produced|Transcribed|E-?text prepared) (?:by|from)\b|An Anonymous Volunteer")
_NOTE = re.compile(r"\[[^\]]*Project Gutenberg[^\]]*\]")


def gutenberg_files(folder: Path) -> list[Path]:
    """The .txt files of `folder` that name Project Gutenberg in their first lines."""
    return [path for path in sorted(folder.glob("*.txt")) if path.is_file() and _head(path)]


def detect_gutenberg(folder: Path) -> bool:
    """Whether there are books of Project Gutenberg in `folder`."""
    return bool(gutenberg_files(folder))


def convert_gutenberg(folder: Path, out_dir: Path) -> Path:
    """Writes the books of Project Gutenberg in `folder` as a text data folder and returns it.

    In a folder with neither Ulysses nor Dracula the last 5 % of each book are for testing, too.

    Raises:
        DataError: A book lacks the lines between which its text stands.
    """
    books = [_book(path) for path in gutenberg_files(folder)]
    if not any(number in (ULYSSES, DRACULA) for number, _, _ in books):
        return write_documents((Document(title, text) for _, title, text in books), out_dir)
    return write_documents((piece for book in books for piece in _pieces(*book)), out_dir)


def strip_gutenberg(text: str, path: Path) -> str:
    """The book without header, licence, credits and editors' notes.

    Raises:
        DataError: The line that begins or ends the book is missing.
    """
    text = clean(text)
    start = _START.search(text)
    end = _END.search(text, start.end() if start else 0)
    if start is None or end is None:
        lacks = "'*** START OF'" if start is None else "'*** END OF'"
        raise DataError(f"{path}: no line {lacks} of Project Gutenberg; fetch the book again")
    book = text[start.end() : end.start()].strip("\n")
    first, _, rest = book.partition("\n\n")
    if _CREDIT.match(first):
        book = rest
    return clean(_NOTE.sub("", book))


def detect_essays(folder: Path) -> bool:
    """Whether the archive of the essays lies in `folder`."""
    return (folder / ESSAYS).is_file()


def convert_essays(folder: Path, out_dir: Path) -> Path:
    """Writes the essays as a text data folder and returns it, each essay in one split.

    Raises:
        DataError: The archive is damaged.
    """
    return write_documents(_essays(folder / ESSAYS), out_dir)


def detect_shakespeare(folder: Path) -> bool:
    """Whether the file of Tiny Shakespeare lies in `folder`."""
    path = folder / SHAKESPEARE
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SPEAKER)) == _SPEAKER


def convert_shakespeare(folder: Path, out_dir: Path) -> Path:
    """Writes Tiny Shakespeare as a text data folder and returns it.

    The last tenth, on which others validate, is half for validation and half for testing.
    """
    path = folder / SHAKESPEARE
    return write_documents([Document("Tiny Shakespeare", decode(path.read_bytes(), path))], out_dir)


def _head(path: Path) -> bool:
    with path.open("rb") as file:
        return _GUTENBERG.search(file.read(HEAD_BYTES)) is not None


def _book(path: Path) -> tuple[int, str, str]:
    """Number, title and text of a book."""
    text = decode(path.read_bytes(), path)
    number = _NUMBER.search(text, 0, HEAD_BYTES)
    title = _TITLE.search(text.replace("\r", ""), 0, HEAD_BYTES)
    named = re.search(r"_(\d+)$", path.stem)
    found = number or named
    return (
        int(found[1]) if found else 0,
        title[1].strip() if title else path.stem,
        strip_gutenberg(text, path),
    )


def _pieces(number: int, title: str, text: str) -> Iterator[Document]:
    if number in (ULYSSES, DRACULA):
        yield Document(title, text, "test")
        return
    head, tail = cut_tail(text, HELD_OUT_SHARE)
    yield Document(title, head, "train")
    yield Document(f"{title} (end)", tail, "valid")


def _essays(path: Path) -> Iterator[Document]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.infolist(), key=lambda member: member.filename):
                if member.is_dir() or not member.filename.endswith(".txt"):
                    continue
                if member.file_size > MAX_ESSAY_BYTES:
                    raise DataError(f"{path}: {member.filename} is too large for an essay; fetch it again")
                yield Document(Path(member.filename).stem, decode(archive.read(member), path))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); fetch it again") from None
