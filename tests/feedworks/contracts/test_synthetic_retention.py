import time

import numpy as np
import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.retention import CATALOGUE, EVENTS, PROFILES
from feedworks.contracts.synthetic_retention import planted_retention, write_synthetic_retention
from feedworks.errors import ConfigError
from feedworks.metrics.classification import auc

DAY_US = 86_400_000_000
SMALL = {"num_users": 40, "num_items": 320, "num_days": 40}
FILES = ("events.parquet", "catalogue.parquet", "profiles.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    start_s = time.perf_counter()
    out = write_synthetic_retention(tmp_path_factory.mktemp("retention"))
    assert time.perf_counter() - start_s < 60  # 1.3 s on a quiet machine
    return out


@pytest.fixture(scope="module")
def planted():
    return planted_retention()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path):
    first, again, other = (
        write_synthetic_retention(tmp_path / name, **SMALL, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name in FILES:
        content = (first / name).read_bytes()
        assert content == (again / name).read_bytes()
        assert content != (other / name).read_bytes()


def test_noise_changes_the_trail_and_nothing_planted(tmp_path):
    for noise in ("low", "high"):
        write_synthetic_retention(tmp_path / noise, **SMALL, noise=noise)
    low, high = (planted_retention(**SMALL, noise=noise) for noise in ("low", "high"))
    assert np.array_equal(low.intent_NK, high.intent_NK)
    assert np.array_equal(low.p_1_N, high.p_1_N)
    assert not np.array_equal(low.seen_1_N, high.seen_1_N)
    assert (tmp_path / "low" / FILES[1]).read_bytes() == (tmp_path / "high" / FILES[1]).read_bytes()


def test_ids_are_those_of_the_catalogue_and_profiles(folder):
    events, items = read_table(EVENTS, folder), read_table(CATALOGUE, folder)
    assert items["item_id"].to_pylist() == list(range(1, 1_001))
    assert set(events["item_id"].unique().to_pylist()) <= set(items["item_id"].to_pylist())
    assert read_table(PROFILES, folder)["user_id"].to_pylist() == list(range(1, 1_501))


def outcomes(folder, planted):
    """Whether the user of each planted return has an event in the day, and the week, after the first day."""
    events = read_table(EVENTS, folder)
    user_E, time_E = events["user_id"].to_numpy(), events["event_time"].cast("int64").to_numpy()
    by_user = dict(zip(np.unique(user_E), np.split(time_E, np.flatnonzero(np.diff(user_E)) + 1), strict=True))
    known_N = planted.content_start_us_N + 8 * DAY_US <= time_E.max()
    found = np.zeros((2, len(known_N)), bool)
    for row in np.flatnonzero(known_N):
        times, start_us = by_user[planted.user_id_N[row]], planted.content_start_us_N[row] + DAY_US
        for place, days in enumerate((1, 7)):
            low, high = np.searchsorted(times, [start_us, start_us + days * DAY_US])
            found[place, row] = high > low
    return known_N, found


def test_returns_follow_the_planted_probabilities(folder, planted):
    known_N, found = outcomes(folder, planted)
    assert known_N.sum() > 5_000
    for came_N, p_N, seen_N in (
        (found[0], planted.p_1_N, planted.seen_1_N),
        (found[1], planted.p_7_N, planted.seen_7_N),
    ):
        came_N, p_N, seen_N = came_N[known_N], p_N[known_N], seen_N[known_N]
        assert came_N.mean() == pytest.approx(p_N.mean(), abs=0.02)
        # Both are probabilities of the same thing, so each is right on average wherever one looks.
        for given_N in (p_N, seen_N):
            for part in np.array_split(np.argsort(given_N), 5):
                assert came_N[part].mean() == pytest.approx(given_N[part].mean(), abs=0.045)
        # The intent tells most; less can be seen of it beforehand, but far from nothing.
        assert 0.78 > auc(came_N, p_N) > auc(came_N, seen_N) > 0.65


def expected_auc(score_N, p_N):
    """AUC that a score has on average over labels drawn with the probabilities `p_N`."""
    p_N = p_N[np.argsort(score_N)]
    below_N = np.cumsum(1 - p_N) - (1 - p_N) / 2
    return float((p_N * below_N).sum() / (p_N.sum() * (1 - p_N).sum()))


@pytest.mark.parametrize(("noise", "seen"), [("low", 0.74), ("middle", 0.738), ("high", 0.728)])
def test_less_can_be_seen_beforehand_where_noise_is_high(noise, seen):
    """The ceilings that the docstring names, here for fewer users."""
    planted = planted_retention(num_users=400, noise=noise)
    assert expected_auc(planted.p_1_N, planted.p_1_N) == pytest.approx(0.745, abs=0.003)
    assert expected_auc(planted.p_7_N, planted.p_7_N) == pytest.approx(0.764, abs=0.003)
    assert expected_auc(planted.seen_1_N, planted.p_1_N) == pytest.approx(seen, abs=0.003)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_users": 0}, "num_users is 0, it must be at least 1"),
        ({"num_items": 10}, "num_items is 10, it must be at least 300"),
        ({"num_days": 7}, "num_days is 7, it must be at least 30"),
        ({"seed": -1}, "seed is -1"),
        ({"noise": "none"}, "noise is 'none', known are low, middle, high"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        write_synthetic_retention(tmp_path, **change)
