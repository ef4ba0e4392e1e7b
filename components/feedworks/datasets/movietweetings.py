"""MovieTweetings: ratings that people tweeted, with the second of the tweet, as an event log of new users.

Dooms, De Pessemier, Martens, CrowdRec 2013. The snapshot of 100,000 ratings runs from 2013-02-28 to
2013-09-01. A user's first rating is the conversion (`samples.first_is_conversion=true`, with `idle_days`
longer than the log), the rated movie is known with it (`samples.landing_item=true`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from feedworks.contracts.files import write_table
from feedworks.contracts.retention import CATALOGUE, EVENTS
from feedworks.contracts.tables import EVENT_TIME
from feedworks.errors import DataError

RATINGS, MOVIES = "ratings.dat", "movies.dat"
MAX_RATING = 10
MAX_DIGITS = 18  # of what 64 bits hold
LATEST_S = 4_102_444_800  # the year 2100: later ones are milliseconds
# Genres of IMDb; the place in this list plus 1 is the category, 0 stands for none.
GENRES = (
    *("Action", "Adult", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama"),
    *("Family", "Fantasy", "Film-Noir", "Game-Show", "History", "Horror", "Music", "Musical", "Mystery"),
    *("News", "Reality-TV", "Romance", "Sci-Fi", "Short", "Sport", "Talk-Show", "Thriller", "War", "Western"),
)
# Movies of the log were made from 1894 on, most of them after 2000: about -4 to 1.
YEAR_CENTRE, YEAR_SCALE = 1995, 25
SECOND_US = 1_000_000
_MOVIE_ID = re.compile(r"\d{7,8}")
_YEAR = re.compile(r"\((\d{4})\)\s*$")


class _Movie(NamedTuple):
    category: int
    vector: list[float]


def convert(folder: Path, out_dir: Path) -> Path:
    """Writes ratings.dat and movies.dat of `folder` as a retention data folder at `out_dir` and returns it.

    Item ids are the numbers of IMDb, user ids those of the file. An item's category is its first genre, its
    vector one number for each genre, the year of the movie scaled, and whether genres and year are known;
    what needs other users' ratings, such as popularity, is left to features that have a time. Engagement is
    the rating over 10. There is one surface and nothing about users.

    Raises:
        DataError: A file is missing or a line is not what the format says; names file and line.
    """
    movies = dict(_movies(folder / MOVIES))
    rows = np.array(list(_ratings(folder / RATINGS, movies)), np.int64).reshape(-1, 4)
    if not len(rows):
        raise DataError(f"{folder / RATINGS}: no lines in the file; copy the file again")
    rows = rows[np.lexsort((rows[:, 1], rows[:, 3], rows[:, 0]))]
    user_E, item_E, rating_E, time_s_E = rows.T
    events = {
        "user_id": user_E,
        "item_id": item_E,
        "event_time": pa.array(time_s_E * SECOND_US).cast(EVENT_TIME),
        "surface": np.zeros(len(rows), np.int64),
        "engagement": (rating_E / MAX_RATING).astype(np.float32),
    }
    items = np.unique(item_E)
    found = [movies[item] for item in items.tolist()]
    catalogue = {
        "item_id": items,
        "author_id": np.zeros(len(items), np.int64),
        "category": [movie.category for movie in found],
        "vector": pa.array([movie.vector for movie in found], pa.list_(pa.float32())),
    }
    write_table(EVENTS, pa.table(events), out_dir)
    write_table(CATALOGUE, pa.table(catalogue), out_dir)
    return out_dir


def _movies(path: Path) -> Iterator[tuple[int, _Movie]]:
    for number, fields in _lines(path, 3):
        movie_id, title, genres = fields
        if not _MOVIE_ID.fullmatch(movie_id):
            raise DataError(
                f"{path}, line {number}: {movie_id!r} is no id of IMDb with 7 or 8 digits; these seem to be "
                "the files of another data set"
            )
        named = [genre for genre in genres.split("|") if genre]
        unknown = [genre for genre in named if genre not in GENRES]
        if unknown:
            raise DataError(f"{path}, line {number}: unknown genre {unknown[0]!r}; copy the file again")
        year = _YEAR.search(title)
        scaled = (int(year[1]) - YEAR_CENTRE) / YEAR_SCALE if year else 0.0
        hot = [float(genre in named) for genre in GENRES]
        category = 1 + GENRES.index(named[0]) if named else 0
        yield int(movie_id), _Movie(category, [*hot, scaled, float(bool(named)), float(year is not None)])


def _ratings(path: Path, movies: dict[int, _Movie]) -> Iterator[tuple[int, int, int, int]]:
    for number, fields in _lines(path, 4):
        if not all(field.isascii() and field.isdigit() for field in fields):
            raise DataError(f"{path}, line {number}: expected whole numbers user::movie::rating::seconds")
        if max(map(len, fields)) > MAX_DIGITS or int(fields[3]) > LATEST_S:
            raise DataError(
                f"{path}, line {number}: a number is too large, or the time is not in seconds; "
                "copy the file again"
            )
        user, movie, rating, time_s = (int(field) for field in fields)
        if rating > MAX_RATING or movie not in movies:
            problem = f"rating {rating} is above 10" if rating > MAX_RATING else f"{MOVIES} lacks {movie}"
            raise DataError(f"{path}, line {number}: {problem}; copy both files again")
        yield user, movie, rating, time_s


def _lines(path: Path, num_fields: int) -> Iterator[tuple[int, list[str]]]:
    """Numbers and fields of the lines that are not empty."""
    if not path.is_file():
        raise DataError(f"{path} is missing; fetch the data set or copy the file there")
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                fields = line.rstrip("\r\n").split("::")
                if len(fields) != num_fields:
                    if line.strip():
                        raise DataError(f"{path}, line {number}: expected {num_fields} fields between '::'")
                    continue
                yield number, fields
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); copy the file again") from None
