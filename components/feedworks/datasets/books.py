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
from typing import NamedTuple

from feedworks.datasets.documents import HELD_OUT_SHARE, Document, clean, cut_tail, decode, write_documents
from feedworks.errors import DataError

ULYSSES, DRACULA = 4300, 345
ESSAYS = "paul_graham_essays.zip"
SHAKESPEARE = "input.txt"
_SPEAKER = b"First Citizen:"


class Book(NamedTuple):
    """A book as GITenberg keeps it: its repository, the file and commit there, and the file's sha256."""

    name: str
    file: str
    commit: str
    sha256: str


BOOKS = (
    Book(
        "War-and-Peace_2600",
        "2600-0.txt",
        "fa22ab90f00f627e83d14acabe32d91602d2365d",
        "6cbcc5ca5e590fb9ace161a5b93e4ecf280d7118104be0d63b686c004cfa70ae",
    ),
    Book(
        "Moby-Dick--Or-The-Whale_2701",
        "2701-0.txt",
        "bdf1948e6cd00963730971e5624e764a35f238c3",
        "baf9b04fcf6e0008f30eaaa6697277751448c1070b20175e0082f28cbb161fd3",
    ),
    Book(
        "Middlemarch_145",
        "145.txt",
        "39add53d31f10ba5cecdcbe8c095f90b25fd4b3f",
        "f499b77eb0e4e34edc3bae6b968e3241c8327384631bd26e8eec76b726915a7d",
    ),
    Book(
        "The-Brothers-Karamazov_28054",
        "28054-0.txt",
        "6a2b2e1e64fe3246e470b60459ba207e2872bd0e",
        "fcd9f41938533326d28af59b88dfcfe871096828c0249de133e25eace4dee61e",
    ),
    Book(
        "Ulysses_4300",
        "4300-0.txt",
        "fcbee188040e6c75e114f867829f0ab172b1941e",
        "4ea566a510a547adcb01b52fe78ff269926fe8d5e8060591f725de6d77afa3ac",
    ),
    Book(
        "Great-Expectations_1400",
        "1400-0.txt",
        "889db0e100928a957f469bf834c564d04065c8e6",
        "b58ce42c630e06314f2442d5937fa8a8556b6e3c5c16f4713c7332a4bb50b420",
    ),
    Book(
        "Crime-and-Punishment_2554",
        "2554-0.txt",
        "df32009e1d36b38bc4b010d6e19f8f529eeb4125",
        "32d94b3ad762826e9b13a0dec8e0a29985725084ac9dcbe55552a45e6abdac87",
    ),
    Book(
        "Pride-and-Prejudice_1342",
        "1342-0.txt",
        "81db45c9c48c592f0b77f01fc59e677ad0a5634e",
        "48e0522844402a86a3ea98f0947ba85ea54838db3c59022299298ed968a5a163",
    ),
    Book(
        "Dracula_345",
        "345.txt",
        "5216d6ea255fbf8966426a160b68251b18f16907",
        "c802711470ddb2aaca81432fc101ed29c154e7c3d32df4172478695c33f68eae",
    ),
    Book(
        "Jane-Eyre_1260",
        "1260.txt",
        "d8976a3c05269fb2ecb83d4575d82c6c2abe0012",
        "bc74b04ec70c9283323f5043f3305c4b08e70650a96ca5a9e1c5e5c5b4c0aa9a",
    ),
)
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
