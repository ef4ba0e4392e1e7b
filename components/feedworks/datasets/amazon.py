"""Amazon product reviews of 2014, in two published forms.

* The S3-Rec form (Zhou et al., CIKM 2020, arXiv 2008.07873): one line `user item item ...` per user, oldest
  first, 5-core. It has no times, so an event's time is its place in the history, counted in seconds from
  2000-01-01 UTC: right for any split by position, meaningless for a split by calendar date.
* The reviews of the McAuley lab (`reviews_<Category>_5.json.gz`, 5-core), with `unixReviewTime` in days.
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.files import write_table
from feedworks.contracts.tables import EVENT_TIME, INTERACTIONS, ITEMS
from feedworks.errors import DataError

START_US = 946_684_800_000_000  # 2000-01-01 00:00 UTC
SECOND_US = 1_000_000

IntArray = npt.NDArray[np.int64]


def s3rec_name(folder: Path) -> str | None:
    """`<Name>` if `folder` holds just one `<Name>.txt` with its `<Name>_item2attributes.json`, else None."""
    suffix = "_item2attributes.json"
    stems = [path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")]
    found = [stem for stem in stems if (folder / f"{stem}.txt").is_file()]
    return found[0] if len(found) == 1 else None


def convert_s3rec(folder: Path, out_dir: Path) -> Path:
    """Writes the S3-Rec files of `folder` as a data folder at `out_dir` and returns it.

    Item and user ids stay as in the file (from 1). The text of an item is its line in `item_text_ids.txt`,
    where there is one, followed by one word `attr_<id>` per attribute, so that a TF-IDF sees both.

    Raises:
        DataError: A file is missing or a line is not what the format says; names file and line.
    """
    name = s3rec_name(folder)
    if name is None:
        raise DataError(f"{folder}: expected just one <Name>.txt with its <Name>_item2attributes.json")
    users, items, places = _read_sequences(folder / f"{name}.txt")
    attributes = _read_json(folder / f"{name}_item2attributes.json")
    known = np.unique(np.concatenate([items, np.array([int(key) for key in attributes], np.int64)]))
    external = _read_json(folder / "datamaps.json").get("id2item", {})
    texts = _read_item_texts(folder / "item_text_ids.txt")
    words = [
        " ".join(
            [
                *texts.get(external.get(str(item), ""), "").split(),
                *(f"attr_{a}" for a in attributes.get(str(item), [])),
            ]
        )
        for item in known
    ]
    item_rows = {
        "item_id": known,
        "text": pa.array([text or None for text in words], pa.string()),
        "external_id": pa.array([external.get(str(item)) for item in known], pa.string()),
    }
    times = pa.array(START_US + places * SECOND_US).cast(EVENT_TIME)
    _write(out_dir, {"user_id": users, "item_id": items, "event_time": times}, item_rows)
    return out_dir


def convert_reviews(folder: Path, out_dir: Path, *, category: str) -> Path:
    """Writes the reviews (and, where present, the metadata) of one category as a data folder at `out_dir`.

    Users and items get ids from 1 in the alphabetical order of their Amazon ids. Reviews of one day keep the
    order of the file: review times are whole days, so the n-th review of a user on a day is put n - 1
    microseconds into it. A user who reviewed an item twice keeps both events.

    Raises:
        DataError: A file is missing, truncated or not what the format says; names file and line.
    """
    path = folder / f"reviews_{category}_5.json.gz"
    raw = [
        (row["reviewerID"], row["asin"], int(row["unixReviewTime"]))
        for row in _read_gzip_rows(path, ("reviewerID", "asin", "unixReviewTime"))
    ]
    if not raw:
        raise DataError(f"{path}: no reviews in the file; fetch it again")
    _, users = np.unique([r[0] for r in raw], return_inverse=True)
    item_names, items = np.unique([r[1] for r in raw], return_inverse=True)
    times_s = np.array([r[2] for r in raw], np.int64)
    order = np.lexsort((np.arange(len(raw)), times_s, users))
    users, items, times_s = users[order], items[order], times_s[order]
    times = pa.array(times_s * SECOND_US + _place_in_run(users, times_s)).cast(EVENT_TIME)
    texts = _read_meta_texts(folder / f"meta_{category}.json.gz", set(item_names.tolist()))
    item_rows = {
        "item_id": np.arange(1, len(item_names) + 1),
        "text": pa.array([texts.get(name) for name in item_names], pa.string()),
        "external_id": item_names.tolist(),
    }
    _write(out_dir, {"user_id": users + 1, "item_id": items + 1, "event_time": times}, item_rows)
    return out_dir


def _write(out_dir: Path, interactions: dict[str, Any], items: dict[str, Any]) -> None:
    write_table(INTERACTIONS, pa.table(interactions), out_dir)
    write_table(ITEMS, pa.table(items), out_dir)


def _read_sequences(path: Path) -> tuple[IntArray, IntArray, IntArray]:
    """Columns user, item and place in the history (from 0), ordered by user and place."""
    histories: dict[int, IntArray] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                ids = np.array(line.split(), np.int64)
            except (ValueError, OverflowError):
                raise DataError(
                    f"{path}, line {number}: expected whole numbers 'user item item ...'"
                ) from None
            if len(ids) < 2 or ids.min() < 0 or int(ids[0]) in histories:
                raise DataError(
                    f"{path}, line {number}: expected a new user, then its items, all of them >= 0"
                )
            histories[int(ids[0])] = ids[1:]
    if not histories:
        raise DataError(f"{path}: no lines in the file")
    users = sorted(histories)
    lengths = np.array([len(histories[user]) for user in users])
    places = np.concatenate([np.arange(n) for n in lengths])
    return (
        np.repeat(np.array(users, np.int64), lengths),
        np.concatenate([histories[u] for u in users]),
        places,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); copy the file again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_item_texts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    split = (line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
    return {external_id: text.strip() for external_id, _, text in split if external_id}


def _read_gzip_rows(path: Path, required: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path} is missing; fetch the data set or copy the file there")
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                row = _parse_row(line)
                if row is None or any(field not in row for field in required):
                    raise DataError(f"{path}, line {number}: expected an object with {', '.join(required)}")
                yield row
    except (EOFError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read past line {number} ({error}); fetch it again") from None


def _parse_row(line: str) -> dict[str, Any] | None:
    """One line as an object: the reviews are JSON, the metadata of 2014 are Python literals."""
    try:
        row = json.loads(line)
    except ValueError:
        try:
            row = ast.literal_eval(line)
        except (ValueError, SyntaxError):
            return None
    return row if isinstance(row, dict) else None


def _read_meta_texts(path: Path, wanted: set[str]) -> dict[str, str]:
    """Title, brand and categories of each wanted item; empty if the metadata are not there."""
    if not path.is_file():
        return {}
    texts = {}
    for row in _read_gzip_rows(path, ("asin",)):
        if row["asin"] in wanted:
            categories = [name for chain in row.get("categories", []) for name in chain]
            parts = [str(row.get("title", "")), str(row.get("brand", "")), *dict.fromkeys(categories)]
            texts[row["asin"]] = " ".join(part for part in parts if part)
    return {external_id: text for external_id, text in texts.items() if text}


def _place_in_run(users: IntArray, times_s: IntArray) -> IntArray:
    """For rows sorted by user and time: 0, 1, 2, ... within each stretch of equal user and time."""
    place = np.arange(len(users))
    starts = np.ones(len(users), bool)
    starts[1:] = (users[1:] != users[:-1]) | (times_s[1:] != times_s[:-1])
    return np.asarray(place - np.maximum.accumulate(np.where(starts, place, 0)))
