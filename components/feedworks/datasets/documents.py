"""Texts from anywhere to the documents of a text data folder: cleaned, without repeats, with their splits."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from feedworks.contracts.files import table_writer
from feedworks.contracts.text import DOCUMENTS, SPLITS
from feedworks.errors import DataError
from feedworks.progress import Progress, say

LINES = (".jsonl", ".jsonl.gz")
# With fewer documents the splits are parts of them: whole ones would be too few to measure anything.
FEW = 20
# Of a document that is cut, or of the documents.
HELD_OUT_SHARE = 0.05
VALID_PLACE, TEST_PLACE = 9, 19  # of every twenty
LONGEST_WORD = 50  # what has no gap for so long has no words that gaps could tell
BATCH_CHARACTERS = 32_000_000
_ENDS = re.compile(r"\n\s*\n|\n|\s")


class Document(NamedTuple):
    """A text on its way into a data folder; without a split it is given one."""

    title: str
    text: str
    split: str | None = None


def write_documents(documents: Iterable[Document], out_dir: Path) -> Path:
    """Writes documents as the text data folder `out_dir` and returns it; any number of them, as they come.

    Line ends become newlines, spaces before them and more than two empty lines go. Blank documents and those
    whose words have all been seen before are left out, and said.

    Where documents name no split: of twenty in a row the tenth is for validation and the last for testing.
    Of fewer than twenty documents the end of each is cut off, 5 % for validation and the last 5 % for
    testing; so these parts are by authors and of books that training knows.

    Raises:
        DataError: There is no text, too little to cut it, or a split of another name.
    """
    fresh = _fresh(documents)
    first = list(itertools.islice(fresh, FEW))
    whole = len(first) == FEW or any(document.split is not None for document in first)
    pieces: Iterable[Document] = itertools.chain(first, fresh) if whole else _cut_all(first)
    number = itertools.count()
    with table_writer(DOCUMENTS, out_dir) as write, Progress("documents") as shown:
        for batch in _batches(pieces):
            ids = list(itertools.islice(number, len(batch)))
            splits = [d.split or _split_of(i) for i, d in zip(ids, batch, strict=True)]
            unknown = sorted(set(splits) - set(SPLITS))
            if unknown:
                raise DataError(f"unknown split {unknown[0]!r}; known are {', '.join(SPLITS)}")
            rows = {"document_id": ids, "title": [d.title for d in batch], "split": splits}
            write(pa.table({**rows, "text": pa.array([d.text for d in batch], pa.large_string())}))
            shown.advance(len(batch))
        if not shown.count:
            raise DataError("there is no text in these files")
    return out_dir


def cut_tail(text: str, share: float) -> tuple[str, str]:
    """Cuts the last `share` off a text, between paragraphs if it can, else lines, words or characters.

    Raises:
        DataError: The text is too short for it.
    """
    wanted = round(len(text) * (1 - share))
    near = max(1, round(len(text) * share / 2))
    found = [m for m in _ENDS.finditer(text, wanted - near, wanted + near) if m.end() < len(text)]
    # The largest gap, and of equal ones the nearest; some scripts have none between words.
    ends = (m.span() for m in sorted(found, key=lambda m: (-m.group().count("\n"), abs(m.start() - wanted))))
    start, end = next(ends, (wanted, wanted) if near >= LONGEST_WORD else (0, 0))
    head, tail = text[:start].rstrip() + "\n", text[end:]
    if not head.strip() or not tail.strip():
        raise DataError(
            f"a text of {len(text):,} characters is too short to cut {share:.0%} off; bring a longer one, or "
            f"{FEW} documents and more"
        )
    return head, tail


def clean(text: str) -> str:
    """The text with plain newlines, no space before them and at most two empty lines in a row."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[^\S\n]+(?=\n|\Z)", "", text)
    text = re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")
    return text + "\n" if text else ""


def decode(content: bytes, path: Path) -> str:
    """Bytes of a text file: UTF-8, else the Western code pages that old files are in.

    Raises:
        DataError: They are no text.
    """
    if b"\0" in content:
        raise DataError(f"{path}: holds NUL bytes, so it is no text in UTF-8; save it as UTF-8 or move it")
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1")


def text_files(folder: Path) -> list[Path]:
    """Files of texts in `folder` and in its folders called train, valid and test, in the order of names."""
    places = (folder, *(folder / split for split in SPLITS))
    known = (".txt", *LINES)
    found = (path for place in places for path in sorted(place.glob("*")) if path.name.endswith(known))
    return [path for path in found if path.is_file()]


def detect(folder: Path) -> bool:
    """Whether there are files of texts in `folder`."""
    return bool(text_files(folder))


def convert(folder: Path, out_dir: Path) -> Path:
    """Writes the .txt, .jsonl and .jsonl.gz files of `folder` as a text data folder and returns it.

    A .txt file is one document. A line of the others is one: an object with `text`, and if there are `title`
    and `split`. Files in folders called train, valid and test belong to that split.

    Raises:
        DataError: A file is no text, a line is no such object; names file and line. See `write_documents`.
    """
    return write_documents(read_files(text_files(folder), folder), out_dir)


def read_files(paths: Sequence[Path], folder: Path) -> Iterator[Document]:
    """The documents of these files of `folder`, see `convert`."""
    for path in paths:
        split = path.parent.name if path.parent != folder else None
        if not path.name.endswith(LINES):
            yield Document(path.stem, decode(path.read_bytes(), path), split)
            continue
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield _parsed(line, f"{path}, line {number}", split)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: cannot be unpacked ({error}); copy the file again") from None


def _parsed(line: bytes, where: str, split: str | None) -> Document:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON ({error}); write one object in each line") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f'{where}: expected an object such as {{"text": "..."}}')
    title, own = row.get("title", where.rpartition("/")[2]), row.get("split", split)
    if not isinstance(title, str) or not (own is None or isinstance(own, str)):
        raise DataError(f"{where}: title and split must be strings")
    try:
        row["text"].encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: half of a surrogate pair is no character; decode the text again") from None
    return Document(title, row["text"], own)


def _fresh(documents: Iterable[Document]) -> Iterator[Document]:
    """Cleaned documents whose words have not come before."""
    seen: set[bytes] = set()
    num_blank = num_repeats = 0
    for document in documents:
        text = clean(document.text)
        words = " ".join(text.split())
        # As in `feedworks.validation.measure`; 16 bytes each, so that a large corpus fits in memory.
        digest = hashlib.blake2b(words.encode(), digest_size=16).digest()
        num_blank += not words
        num_repeats += bool(words) and digest in seen
        if words and digest not in seen:
            seen.add(digest)
            yield document._replace(text=text)
    if num_blank or num_repeats:
        say(f"left out: {num_blank:,} blank documents, {num_repeats:,} that had come before")


def _cut_all(documents: Sequence[Document]) -> Iterator[Document]:
    train, valid, test = SPLITS
    for title, text, _ in documents:
        try:
            head, last = cut_tail(text, HELD_OUT_SHARE)
            head, middle = cut_tail(head, HELD_OUT_SHARE / (1 - HELD_OUT_SHARE))
        except DataError as error:
            raise DataError(f"{title}: {error}") from None
        yield Document(title, head, train)
        yield Document(f"{title} (before the end)", middle, valid)
        yield Document(f"{title} (end)", last, test)


def _split_of(place: int) -> str:
    train, valid, test = SPLITS
    return {VALID_PLACE: valid, TEST_PLACE: test}.get(place % FEW, train)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) == DOCUMENTS.group_rows or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
