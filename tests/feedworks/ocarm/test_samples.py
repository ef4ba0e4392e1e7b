"""Samples against plain loops over one user at a time."""

import bisect

import numpy as np
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.retention import CATALOGUE, EVENTS, SAMPLES
from feedworks.contracts.synthetic_retention import planted_retention, write_synthetic_retention
from feedworks.errors import DataError
from feedworks.ocarm import event_log
from feedworks.ocarm.config import SamplesConfig
from feedworks.ocarm.samples import build_samples
from feedworks.storage import read_json

from .logs import DAY_US, START_US, random_log, write_log

CONFIGS = {
    "plain": SamplesConfig(),
    "first": SamplesConfig(first_is_conversion=True, landing_item=True, horizons=(7, 30), embargo=False),
    "two days": SamplesConfig(idle_days=1.5, content_days=2, horizons=(1,)),
    "overlap": SamplesConfig(content_days=3, overlap=True),
}


def expected(folder, cfg):
    """(user, t0) -> labels, surface and item of every conversion whose label windows lie inside the log."""
    events = read_table(EVENTS, folder).to_pylist()
    by_user = {}
    for event in events:
        by_user.setdefault(event["user_id"], []).append(event)
    for event in events:
        event["us"] = round(event["event_time"].timestamp() * 1e6)
    end_us = max(event["us"] for event in events)
    found = {}
    for user, own in by_user.items():
        times = [event["us"] for event in own]
        for place, event in enumerate(own):
            gap_us = event["us"] - times[place - 1] if place else None
            back = gap_us >= cfg.idle_days * DAY_US if place else cfg.first_is_conversion
            start_us = event["us"] + (1 if cfg.overlap else cfg.content_days) * DAY_US
            if not back or start_us + max(cfg.horizons) * DAY_US > end_us:
                continue
            periods = [
                bisect.bisect_left(times, start_us + (day + 1) * DAY_US)
                > bisect.bisect_left(times, start_us + day * DAY_US)
                for day in range(max(cfg.horizons))
            ]
            labels = {days: sum(periods[:days]) / days for days in cfg.horizons}
            found[user, event["us"]] = (labels, event["surface"], event["item_id"], start_us)
    return found


@pytest.fixture(scope="module", params=CONFIGS)
def built(request, tmp_path_factory):
    cfg = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp("built")
    log = random_log(folder / "log", seed=3)
    build_samples(log, folder / "samples", folder / "tables", cfg)
    return cfg, log, folder


def us(row, name):
    return round(row[name].timestamp() * 1e6)


def test_samples_are_the_conversions_with_their_labels(built):
    cfg, log, folder = built
    wanted = expected(log, cfg)
    rows = read_table(SAMPLES, folder / "samples").to_pylist()
    report = read_json(folder / "samples" / "samples.json")
    assert len(rows) == report["num_samples"]
    assert len(rows) + report["num_embargoed"] == len(wanted)
    assert report["num_conversions"] == len(wanted) + report["num_open"]
    assert sum(report["rows"].values()) == len(rows) > 50
    for row in rows:
        labels, surface, item, start_us = wanted[row["user_id"], us(row, "content_start")]
        for days in (1, 7, 30):
            assert row[f"lt{days}"] == (pytest.approx(labels[days]) if days in labels else None)
        assert (row["surface"], row["ad_item"]) == (surface, item if cfg.landing_item else None)
        assert us(row, "bid_time") == us(row, "content_start") - 1_000_000
        assert us(row, "content_end") == us(row, "content_start") + cfg.content_days * DAY_US
        assert us(row, "label_start") == start_us
    assert [row["sample_id"] for row in rows] == list(range(len(rows)))
    assert [(row["bid_time"], row["user_id"]) for row in rows] == sorted(
        (row["bid_time"], row["user_id"]) for row in rows
    )


def test_splits_follow_each_other_and_training_labels_end_before_the_test_period(built):
    cfg, _, folder = built
    rows = read_table(SAMPLES, folder / "samples").to_pylist()
    times = {split: [row for row in rows if row["split"] == split] for split in ("train", "valid", "test")}
    last_train = max(row["bid_time"] for row in times["train"])
    assert last_train < min(row["bid_time"] for row in times["valid"])
    assert max(row["bid_time"] for row in times["valid"]) < min(row["bid_time"] for row in times["test"])
    first_test_us = min(us(row, "bid_time") for row in times["test"])
    known = [
        us(row, "label_start") + max(cfg.horizons) * DAY_US <= first_test_us
        for row in times["train"] + times["valid"]
    ]
    assert all(known) == cfg.embargo


def test_the_catalogue_is_copied(built):
    _, log, folder = built
    assert CATALOGUE.path(folder / "samples").read_bytes() == CATALOGUE.path(log).read_bytes()


def test_small_blocks_give_the_same_files(tmp_path, monkeypatch):
    log = random_log(tmp_path / "log")
    build_samples(log, tmp_path / "whole", tmp_path / "tables", SamplesConfig())
    monkeypatch.setattr(event_log, "BATCH_EVENTS", 7)
    monkeypatch.setattr(event_log, "BLOCK_EVENTS", 30)
    assert len(list(event_log.read_blocks(log))) > 10
    build_samples(log, tmp_path / "parts", tmp_path / "part_tables", SamplesConfig())
    assert (tmp_path / "whole" / "samples.parquet").read_bytes() == (
        tmp_path / "parts" / "samples.parquet"
    ).read_bytes()
    for path in (tmp_path / "tables").iterdir():
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "part_tables" / path.name))


def test_first_at_least_is_a_search_in_each_range():
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 50, 200))
    low = rng.integers(0, 200, 500)
    high = np.minimum(low + rng.integers(0, 60, 500), 200)
    wanted = rng.integers(-5, 60, 500)
    found = event_log.first_at_least(times, low, high, wanted)
    rows = zip(low.tolist(), high.tolist(), wanted.tolist(), strict=True)
    assert found.tolist() == [bisect.bisect_left(times.tolist(), t, lo, hi) for lo, hi, t in rows]


def test_a_log_too_short_says_so(tmp_path):
    log = write_log(tmp_path / "log", [(1, 0, 1), (1, 3, 1), (1, 5.5, 2)])
    with pytest.raises(DataError, match=r"none of 2 conversions has its labels inside the log of 5.5 days"):
        build_samples(log, tmp_path / "samples", tmp_path / "tables", SamplesConfig())
    assert not (tmp_path / "samples").exists()
    assert not (tmp_path / "tables").exists()


def test_a_split_without_rows_says_so(tmp_path):
    log = write_log(tmp_path / "log", [(1, 0, 1), (1, 3, 1), (1, 20, 1), (2, 0, 1), (2, 11.5, 2)])
    with pytest.raises(
        DataError, match=r"of 2 samples 1 are in the test period and 1 before it .* no train split"
    ):
        build_samples(log, tmp_path / "samples", tmp_path / "tables", SamplesConfig())


def test_events_out_of_order_and_unknown_items_are_refused(tmp_path):
    log = write_log(tmp_path / "log", [(1, 0, 1), (1, 3, 1), (2, 9, 1)])
    rows = pq.read_table(log / "events.parquet")
    pq.write_table(rows.take([1, 0, 2]), log / "events.parquet")
    with pytest.raises(DataError, match="not sorted by user_id and event_time"):
        build_samples(log, tmp_path / "samples", tmp_path / "tables", SamplesConfig())
    log = write_log(tmp_path / "unknown", [(1, 0, 1), (1, 3, 99), (2, 9, 1)])
    with pytest.raises(DataError, match=r"items such as \[99\] are not in the catalogue"):
        build_samples(log, tmp_path / "samples", tmp_path / "tables", SamplesConfig())


def test_returns_of_planted_data_are_those_that_were_planted(tmp_path):
    write_synthetic_retention(tmp_path / "log", num_users=60, num_days=45)
    built = build_samples(tmp_path / "log", tmp_path / "samples", tmp_path / "tables", SamplesConfig())
    planted = planted_retention(num_users=60, num_days=45)
    pairs = set(zip(planted.user_id_N.tolist(), planted.content_start_us_N.tolist(), strict=True))
    rows = read_table(SAMPLES, tmp_path / "samples").to_pylist()
    assert {(row["user_id"], us(row, "content_start")) for row in rows} <= pairs
    assert built.num_conversions == len(pairs)
    assert min(planted.content_start_us_N) > START_US
