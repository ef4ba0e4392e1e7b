"""Feature tables against plain loops, and against their contracts."""

import itertools

import pyarrow.parquet as pq
import pytest

from feedworks.contracts.features import (
    AD_CONTEXT,
    FEATURE_TABLES,
    INTERACTION_AGGREGATES,
    ONBOARDING,
    PARALLEL_LISTS,
    USER_PROFILE,
)
from feedworks.contracts.files import read_table
from feedworks.contracts.retention import EVENTS, PROFILES
from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.ocarm import tables
from feedworks.ocarm.config import SamplesConfig
from feedworks.ocarm.samples import build_samples
from feedworks.validation.gate import validate_folder

from .logs import DAY_US, START_US, random_log, write_log

HOUR_US = DAY_US // 24
CFG = SamplesConfig(content_days=2, max_history=6, max_returns=3, first_is_conversion=True)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    random_log(folder / "log", seed=5)
    build_samples(folder / "log", folder / "samples", folder / "tables", CFG)
    return folder


@pytest.fixture(scope="module")
def events(log):
    """Events of each user, with times in microseconds and their item's category."""
    by_user = {}
    for event in read_table(EVENTS, log / "log").to_pylist():
        event["us"] = round(event["event_time"].timestamp() * 1e6)
        event["category"] = event["item_id"] % 7
        by_user.setdefault(event["user_id"], []).append(event)
    return by_user


def rows_of(log, contract):
    rows = read_table(contract, log / "tables").to_pylist()
    for row in rows:
        row["us"] = round(row["event_time"].timestamp() * 1e6)
    return rows


def test_aggregates_count_what_happened_up_to_the_last_event_of_a_day(log, events):
    rows = rows_of(log, INTERACTION_AGGREGATES)
    last_of_day = {(user, e["us"] // DAY_US): e["us"] for user, own in events.items() for e in own}
    assert [(row["user_id"], row["us"]) for row in rows] == sorted(
        (user, time_us) for (user, _), time_us in last_of_day.items()
    )
    for row in rows:
        own = [e for e in events[row["user_id"]] if e["us"] <= row["us"]]
        assert row["aggregated_time"] == row["us"]
        for days in (1, 7, 28):
            inside = [e for e in own if e["us"] > row["us"] - days * DAY_US]
            assert row[f"num_events_{days}d"] == len(inside)
            if days > 1:
                assert row[f"num_days_{days}d"] == len({(row["us"] - e["us"]) // DAY_US for e in inside})
        week = [e["engagement"] for e in own if e["us"] > row["us"] - 7 * DAY_US]
        assert row["mean_engagement_7d"] == pytest.approx(sum(week) / len(week), abs=1e-6)
        latest = own[-CFG.max_history :]
        assert row["history_item"] == [e["item_id"] for e in latest]
        assert row["history_category"] == [e["category"] for e in latest]
        assert row["history_surface"] == [e["surface"] for e in latest]
        assert row["history_engagement"] == [e["engagement"] for e in latest]
        assert row["history_time"] == [e["us"] for e in latest]


def test_ad_context_lists_the_returns_so_far_but_not_the_first_event(log, events):
    wanted = []
    for user, own in events.items():
        returns = [
            (now["us"], (now["us"] - before["us"]) / HOUR_US, now["surface"])
            for before, now in itertools.pairwise(own)
            if now["us"] - before["us"] >= CFG.idle_days * DAY_US
        ]
        for number in range(1, len(returns) + 1):
            wanted.append((user, returns[number - 1][0], number, returns[:number][-CFG.max_returns :]))
    rows = rows_of(log, AD_CONTEXT)
    assert [(r["user_id"], r["us"], r["num_returns"]) for r in rows] == [w[:3] for w in wanted]
    for row, (*_, latest) in zip(rows, wanted, strict=True):
        assert row["return_time"] == [time_us for time_us, _, _ in latest]
        assert row["return_idle_h"] == pytest.approx([idle_h for _, idle_h, _ in latest])
        assert row["return_surface"] == [surface for _, _, surface in latest]
    assert (
        max(len(row["return_time"]) for row in rows) == CFG.max_returns < max(r["num_returns"] for r in rows)
    )


def test_onboarding_is_what_was_met_in_the_window_of_each_conversion(log, events):
    end_us = max(own[-1]["us"] for own in events.values())
    wanted = {}
    for user, own in events.items():
        for before, now in zip([None, *own[:-1]], own, strict=True):
            closes_us = now["us"] + CFG.content_days * DAY_US
            back = before is None or now["us"] - before["us"] >= CFG.idle_days * DAY_US
            if back and closes_us <= end_us:
                wanted[user, closes_us] = [e for e in own if now["us"] <= e["us"] < closes_us]
    rows = rows_of(log, ONBOARDING)
    assert [(row["user_id"], row["us"]) for row in rows] == sorted(wanted)
    for row in rows:
        met = wanted[row["user_id"], row["us"]]
        assert row["content_item"] == [e["item_id"] for e in met]
        assert row["content_category"] == [e["category"] for e in met]
        assert row["content_engagement"] == [e["engagement"] for e in met]
        assert row["content_time"] == [e["us"] for e in met]


def test_a_long_day_of_content_is_cut_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_CONTENT_PER_DAY", 2)
    days = [(0, 1), (0.1, 2), (0.2, 3), (1.0, 4), (1.5, 5), (1.6, 6), (2.0, 7)]
    others = [(2, 0, 1), (2, 1, 2), (3, 5, 1), (4, 9, 1), (5, 19, 1), (6, 25, 1), (7, 40, 1)]
    log = write_log(tmp_path / "log", [(1, day, item) for day, item in days] + others)
    build_samples(log, tmp_path / "samples", tmp_path / "tables", CFG)
    assert pq.read_table(tmp_path / "tables" / "onboarding.parquet")["content_item"][0].as_py() == [
        1,
        2,
        4,
        5,
    ]


def test_profiles_are_as_of_the_day_before_the_log_begins(tmp_path, log):
    write_synthetic_retention(tmp_path / "log", num_users=30, num_days=45)
    build_samples(tmp_path / "log", tmp_path / "samples", tmp_path / "tables", SamplesConfig())
    rows, given = rows_of(tmp_path, USER_PROFILE), read_table(PROFILES, tmp_path / "log").to_pylist()
    for row, profile in zip(rows, given, strict=True):
        assert {name: row[name] for name in profile} == profile
        assert row["us"] == row["profile_time"] == START_US - DAY_US
    # Without a table of profiles the codes say "not known".
    unknown = rows_of(log, USER_PROFILE)
    assert {row["user_id"] for row in unknown} == set(range(1, 41))
    assert all((row["segment"], row["activity"], row["tenure_days"]) == (0, 0, None) for row in unknown)


def test_the_tables_keep_their_contracts(log):
    result = validate_folder(log / "tables", kind="features")
    assert result.success, result.summary()
    assert set(result.rows) == {contract.name for contract in FEATURE_TABLES if not contract.stream}
    for name, columns in PARALLEL_LISTS.items():
        if name in result.rows:
            table = pq.read_table(log / "tables" / f"{name}.parquet")
            lengths = [[len(x) for x in table[column].to_pylist()] for column in columns]
            assert all(each == lengths[0] for each in lengths)
