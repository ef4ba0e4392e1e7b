import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.retention import CATALOGUE, EVENTS
from feedworks.datasets.folder import open_data
from feedworks.datasets.movietweetings import GENRES, convert
from feedworks.errors import DataError
from feedworks.validation.gate import require_valid

MOVIES = """0002844::Fantômas (1913)::Crime|Drama
1074638::Skyfall (2012)::Action
0104257::No year::
"""
RATINGS = "2::0002844::8::1364690142\n1::1074638::7::1365029107\n1::0002844::10::1365029000\n"


def raw(folder, movies=MOVIES, ratings=RATINGS):
    folder.mkdir()
    (folder / "movies.dat").write_text(movies, encoding="utf-8")
    (folder / "ratings.dat").write_text(ratings, encoding="utf-8")
    return folder


def test_ratings_become_events_and_movies_a_catalogue(tmp_path):
    out = open_data(raw(tmp_path / "raw"), tmp_path / "data", kind="retention")
    require_valid(out)
    events = read_table(EVENTS, out).to_pylist()
    assert [(e["user_id"], e["item_id"], e["event_time"].timestamp()) for e in events] == [
        (1, 2844, 1365029000),
        (1, 1074638, 1365029107),
        (2, 2844, 1364690142),
    ]
    assert [e["engagement"] for e in events] == pytest.approx([1.0, 0.7, 0.8])
    rows = read_table(CATALOGUE, out).to_pylist()
    assert [row["item_id"] for row in rows] == [2844, 1074638]  # only what occurs
    assert [row["category"] for row in rows] == [1 + GENRES.index("Crime"), 1 + GENRES.index("Action")]
    vector = rows[0]["vector"]
    assert [GENRES[i] for i in range(len(GENRES)) if vector[i]] == ["Crime", "Drama"]
    assert vector[len(GENRES) :] == pytest.approx([(1913 - 1995) / 25, 1, 1])


def test_a_movie_without_genre_and_year_says_so_in_its_vector(tmp_path):
    out = convert(raw(tmp_path / "raw", ratings="1::0104257::0::1365029107\n"), tmp_path / "data")
    (row,) = read_table(CATALOGUE, out).to_pylist()
    assert row["category"] == 0
    assert not any(row["vector"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratings": "1::2844::7\n"}, r"ratings.dat, line 1: expected 4 fields between '::'"),
        ({"ratings": "1::2844::x::5\n"}, r"ratings.dat, line 1: expected whole numbers"),
        ({"ratings": RATINGS + "1::2844::11::5\n"}, r"ratings.dat, line 4: rating 11 is above 10"),
        ({"ratings": "1::7::1::5\n"}, r"ratings.dat, line 1: movies.dat lacks 7"),
        ({"ratings": f"1::2844::7::{10**20}\n"}, r"ratings.dat, line 1: a number is too large"),
        ({"ratings": f"1::2844::7::{'1' * 5000}\n"}, r"ratings.dat, line 1: a number is too large"),
        ({"ratings": "1::2844::7::1400000000000\n"}, r"or the time is not in seconds"),
        ({"ratings": "\n"}, r"ratings.dat: no lines in the file"),
        ({"movies": "1::Toy Story (1995)::Animation\n"}, r"'1' is no id of IMDb .* of another data set"),
        ({"movies": "0002844::X (1913)::Noir\n"}, r"movies.dat, line 1: unknown genre 'Noir'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        convert(raw(tmp_path / "raw", **change), tmp_path / "data")


def test_other_encodings_and_missing_files_are_told(tmp_path):
    folder = raw(tmp_path / "raw")
    (folder / "movies.dat").write_bytes(MOVIES.encode("latin-1"))
    with pytest.raises(DataError, match=r"movies\.dat: not UTF-8"):
        convert(folder, tmp_path / "data")
    (folder / "movies.dat").unlink()
    with pytest.raises(DataError, match=r"movies\.dat is missing"):
        convert(folder, tmp_path / "data")
