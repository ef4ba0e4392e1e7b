"""KuaiRand: a month of short videos as Kuaishou showed them, every exposure with its time.

Gao et al., CIKM 2022, arXiv 2208.08696. Three versions: 1K (1,000 users, 11.7 M events), 27K (all 27,285
users, 322 M events) and Pure (the same users, but only 7,583 videos, so that gaps look longer than they are).
The log runs from 2022-04-08 to 2022-05-08: labels of one and seven days fit in, those of 30 days do not.
Files of any size are read a few million rows at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from feedworks.contracts.files import table_writer, write_table
from feedworks.contracts.retention import CATALOGUE, EVENTS, NUM_CATEGORIES, NUM_SURFACES, PROFILES
from feedworks.contracts.tables import EVENT_TIME
from feedworks.datasets.archive import unpack
from feedworks.datasets.buckets import Buckets
from feedworks.errors import DataError
from feedworks.progress import Progress

VERSIONS = ("1K", "27K", "Pure")
# A bucket of rows takes about as much memory as this many bytes of its text.
BUCKET_BYTES = 256_000_000
BLOCK_BYTES = 16_000_000
WANTED = re.compile(r"(log_\w+|user_features_\w+|video_features_basic_\w+)\.csv")
LOG_COLUMNS = ("user_id", "video_id", "time_ms", "tab", "play_time_ms", "duration_ms")
# Values as published, each with the code 1, 2, ... of its place; anything else is unknown, 0.
ACTIVITY = (
    *("low_active", "single_low_active", "middle_active", "high_active", "full_active"),
    *("day_new", "2_14_day_new", "30day_retention"),
)
FOLLOWS = ("0", "(0,10]", "(10,50]", "(50,100]", "(100,150]", "(150,250]", "(250,500]", "500+")
FANS = (
    *("0", "[1,10)", "[10,100)", "[100,1k)", "[1k,5k)", "[5k,1w)", "[1w,10w)"),
    *("[10w,100w)", "[100w,1000w)"),
)
FRIENDS = ("0", "[1,5)", "[5,30)", "[30,60)", "[60,120)", "[120,250)", "250+")
SEGMENT = "onehot_feat7"
UPLOADS = ("LongImport", "ShortImport", "Web", "Kmovie", "LongCamera", "ShortCamera", "LongPicture")
MUSIC = (4, 9)
FIRST_DAY = np.datetime64("2022-04-08")
VECTOR_WIDTH = 6 + len(UPLOADS) + len(MUSIC)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def archive_name(version: str) -> str:
    """Name of the archive of a version."""
    return f"KuaiRand-{version}.tar.gz"


def find_raw(folder: Path, version: str) -> Path | None:
    """The folder with the files of a version: this one, or the one in which the archive has them."""
    for place in (folder, folder / "data", folder / f"KuaiRand-{version}" / "data"):
        if (place / f"user_features_{version.lower()}.csv").is_file():
            return place
    return None


def detect(folder: Path, version: str) -> bool:
    """Whether the files of this version, or its archive, lie in `folder`."""
    return find_raw(folder, version) is not None or (folder / archive_name(version)).is_file()


def convert(folder: Path, out_dir: Path, *, version: str) -> Path:
    """Writes the files of one version as a retention data folder at `out_dir` and returns it.

    The archive is unpacked beside itself first, once and only what is needed. Ids stay as they are; a surface
    is a `tab`, engagement the share of the video that was watched, at most 1. A category is a video's first
    tag plus 1; its vector says how long the video is, whether it is an ad, upright, how old, how many tags it
    has and where it came from (`_vectors`). Profiles are codes for the published ranges; `segment` is the
    encrypted feature 7. The statistics of videos are left out: they are means over the whole month.

    Raises:
        DataError: A file or column is missing or a line is not what the format says; names the file.
    """
    raw = find_raw(folder, version)
    if raw is None:
        raw = unpack(folder / archive_name(version), WANTED, folder / f"KuaiRand-{version}" / "data")
    users = _write_profiles(raw / f"user_features_{version.lower()}.csv", out_dir)
    logs = sorted(raw.glob("log_*.csv"))
    if not logs:
        raise DataError(f"{raw} holds no log_*.csv; fetch the data set or copy its logs there")
    seen = _write_events(logs, users, out_dir)
    _write_catalogue(raw / f"video_features_basic_{version.lower()}.csv", seen, out_dir)
    return out_dir


def _write_profiles(path: Path, out_dir: Path) -> int:
    """Writes the profiles and returns the number of user ids, the largest one plus 1."""
    names = ("user_active_degree", "follow_user_num_range", "fans_user_num_range", "friend_user_num_range")
    columns = {"user_id": pa.int64(), "register_days": pa.float32(), SEGMENT: pa.float64()}
    rows = pa.concat_tables(_read(path, columns | dict.fromkeys(names, pa.string())))
    if not len(rows):
        raise DataError(f"{path} has no rows; copy the file again")
    activity, follows, fans, friends = (
        _codes(rows[name], known)
        for name, known in zip(names, (ACTIVITY, FOLLOWS, FANS, FRIENDS), strict=True)
    )
    segment = _known(rows[SEGMENT].to_numpy())
    tenure = rows["register_days"].to_numpy()
    profiles = {
        "user_id": rows["user_id"],
        "activity": activity,
        "segment": np.where(np.isnan(segment), 0, segment + 1).astype(np.int64).clip(0, 255),
        "follows": follows,
        "fans": fans,
        "friends": friends,
        "tenure_days": pa.array(tenure, mask=~(tenure >= 0)),
    }
    table = pa.table(profiles).sort_by("user_id")
    write_table(PROFILES, table, out_dir)
    return int(table["user_id"][-1].as_py()) + 1


def _write_events(logs: list[Path], num_users: int, out_dir: Path) -> npt.NDArray[np.bool_]:
    """Writes all logs as one table and returns which video ids occur."""
    num_bytes = sum(path.stat().st_size for path in logs)
    seen = np.zeros(0, bool)
    num_buckets = -(-num_bytes // BUCKET_BYTES)
    types = dict.fromkeys(LOG_COLUMNS, pa.int64())
    with (
        Buckets(out_dir, key="user_id", num_ids=num_users, num_buckets=num_buckets) as buckets,
        Progress("rows of logs") as shown,
    ):
        for path in logs:
            for rows in _read(path, types):
                try:
                    buckets.add(_events(rows))
                except DataError as error:
                    raise DataError(f"{path}: {error}; copy the file again") from None
                shown.advance(len(rows))
        with table_writer(EVENTS, out_dir) as write:
            for _, rows in buckets.read():
                if rows is None:
                    continue
                ordered = rows.sort_by([(name, "ascending") for name in ("user_id", "event_time", "item_id")])
                write(ordered)
                item_N = ordered["item_id"].to_numpy()
                if item_N.max() >= len(seen):
                    seen = np.append(seen, np.zeros(int(item_N.max()) + 1 - len(seen), bool))
                seen[item_N] = True
    if not len(seen):
        raise DataError(f"{logs[0].parent}: the logs have no rows; copy the files again")
    return seen


def _events(rows: pa.Table) -> pa.Table:
    for name in LOG_COLUMNS:
        if rows[name].null_count:
            raise DataError(f"column {name} has {rows[name].null_count} rows without a number")
    tab, item = rows["tab"].to_numpy(), rows["video_id"].to_numpy()
    if len(rows) and (not 0 <= tab.min() <= tab.max() < NUM_SURFACES or item.min() < 0):
        raise DataError(f"column tab is outside 0 to {NUM_SURFACES - 1} or column video_id below 0")
    played, length = rows["play_time_ms"].to_numpy(), rows["duration_ms"].to_numpy()
    share = np.divide(played, length, out=np.zeros(len(rows)), where=length > 0)
    return pa.table(
        {
            "user_id": rows["user_id"],
            "item_id": rows["video_id"],
            "event_time": pc.multiply(rows["time_ms"], 1000).cast(EVENT_TIME),
            "surface": rows["tab"],
            "engagement": share.clip(0, 1).astype(np.float32),
        }
    )


def _write_catalogue(path: Path, seen: npt.NDArray[np.bool_], out_dir: Path) -> None:
    """Writes the videos that occur; one without a line in the file is unknown in everything."""
    types = {
        **dict.fromkeys(("video_id", "author_id"), pa.int64()),
        **dict.fromkeys(("video_duration", "server_width", "server_height", "music_type"), pa.float64()),
        **dict.fromkeys(("video_type", "upload_type", "upload_dt", "tag"), pa.string()),
    }
    num_buckets = -(-path.stat().st_size // BUCKET_BYTES) if path.is_file() else 1
    with (
        Buckets(out_dir, key="video_id", num_ids=len(seen), num_buckets=num_buckets) as buckets,
        Progress("videos") as shown,
    ):
        for rows in _read(path, types):
            id_N = pc.fill_null(rows["video_id"], -1).to_numpy()
            wanted_N = (id_N >= 0) & (id_N < len(seen))
            wanted_N[wanted_N] = seen[id_N[wanted_N]]
            buckets.add(rows.filter(pa.array(wanted_N)))
            shown.advance(len(rows))
        with table_writer(CATALOGUE, out_dir) as write:
            for ids, rows in buckets.read():
                occurring = ids.start + np.flatnonzero(seen[ids.start : ids.stop])
                if len(occurring):
                    write(_catalogue(occurring, rows, path))


def _catalogue(id_I: IntArray, rows: pa.Table | None, path: Path) -> pa.Table:
    """Rows of the catalogue for these ids, in their order."""
    author_I, category_I = np.zeros_like(id_I), np.zeros_like(id_I)
    vector_IV = np.zeros((len(id_I), VECTOR_WIDTH), np.float32)
    if rows is not None and len(rows):
        video = rows["video_id"].to_numpy()
        if len(np.unique(video)) < len(video):
            raise DataError(f"{path}: a video stands there twice; copy the file again")
        place = np.searchsorted(id_I, video)
        author_I[place] = pc.fill_null(rows["author_id"], 0).to_numpy().clip(0)
        category_I[place] = _first_tag(rows["tag"])
        vector_IV[place] = _vectors(rows)
    flat = pa.array(vector_IV.ravel())
    vectors = pa.FixedSizeListArray.from_arrays(flat, VECTOR_WIDTH)
    return pa.table({"item_id": id_I, "author_id": author_I, "category": category_I, "vector": vectors})


def _first_tag(tags: pa.ChunkedArray) -> IntArray:
    found = pc.extract_regex(tags, r"^(?P<first>\d{1,4})(?:,|$)")
    first = pc.struct_field(found, "first").cast(pa.int64())
    return np.asarray(pc.fill_null(pc.add(first, 1), 0).to_numpy().clip(0, NUM_CATEGORIES - 1))


def _vectors(rows: pa.Table) -> FloatArray:
    """Numbers of about -2 to 2, 0 where something is not known, `(I, V)`.

    In order: logarithm of the length over a minute, whether it is known, ad, upright, logarithm of the days
    between upload and the log's first day, number of tags over 2, then one number for each kind of upload and
    of music.
    """
    length = _known(rows["video_duration"].to_numpy())
    width, height = rows["server_width"].to_numpy(), rows["server_height"].to_numpy()
    uploaded = pc.strptime(rows["upload_dt"], format="%Y-%m-%d", unit="s", error_is_null=True)
    days = (FIRST_DAY - uploaded.to_numpy().astype("datetime64[D]")).astype(np.float64)
    days[pc.is_null(uploaded).to_numpy()] = np.nan
    tags = pc.fill_null(
        pc.if_else(pc.equal(rows["tag"], ""), 0, pc.add(pc.count_substring(rows["tag"], ","), 1)), 0
    )
    numbers = [
        np.log(np.maximum(length, 1000) / 60_000) / 2,
        ~np.isnan(length),
        _equal(rows["video_type"], "AD"),
        np.nan_to_num(height) > np.nan_to_num(width),
        np.log1p(np.maximum(days, 0)) / 4,
        tags.to_numpy() / 2,
        *(_equal(rows["upload_type"], kind) for kind in UPLOADS),
        *(rows["music_type"].to_numpy() == kind for kind in MUSIC),
    ]
    return np.nan_to_num(np.stack([np.asarray(number, np.float64) for number in numbers], axis=1))


def _read(path: Path, types: dict[str, pa.DataType]) -> Iterator[pa.Table]:
    """The named columns of a CSV file, some megabytes at a time.

    Raises:
        DataError: The file is missing, lacks a column, or holds something else than its type.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; fetch the data set or copy the file there")
    options: dict[str, Any] = {
        "read_options": pa.csv.ReadOptions(block_size=BLOCK_BYTES),
        "parse_options": pa.csv.ParseOptions(newlines_in_values=False),
        "convert_options": pa.csv.ConvertOptions(
            include_columns=list(types), column_types=types, strings_can_be_null=True
        ),
    }
    try:
        with pa.csv.open_csv(path, **options) as batches:
            for batch in batches:
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, KeyError) as error:
        reason = str(error).splitlines()[0].strip("'")
        raise DataError(f"{path}: not what is published ({reason}); copy the file again") from None


def _codes(values: pa.ChunkedArray, known: tuple[str, ...]) -> IntArray:
    found = pc.index_in(values, value_set=pa.array(known))
    return np.asarray(pc.add(pc.fill_null(found, -1), 1).to_numpy(), np.int64)


def _known(numbers: FloatArray) -> FloatArray:
    """NaN for what the files call -124: not known."""
    return np.where(numbers >= 0, numbers, np.nan)


def _equal(values: pa.ChunkedArray, word: str) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(pc.equal(values, word), False).to_numpy())
