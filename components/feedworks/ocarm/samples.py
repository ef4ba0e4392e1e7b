"""Event logs to samples: one row per conversion, with its windows and labels, split by time.

A conversion is the first event of a user after `idle_days` without any. Bid time is one second before it; the
content window runs from it for `content_days` days of 24 hours; the labels LT_d count the share of the d
24-hour periods after the content window in which the user has an event.

Only conversions with all label windows inside the log become samples. The latest `test_share` of them, by
bid time, is the test split. A model that is trained when the test period begins can not know labels that are
still open then: with `embargo` the samples before that moment whose label windows reach past it are left out.
On a short log this costs much (8 days of samples for 7-day labels), so that it can be turned off. The latest
`valid_share` of what remains chooses epochs; its label windows may overlap with those of training.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.features import AD_CONTEXT, INTERACTION_AGGREGATES, ONBOARDING, USER_PROFILE
from feedworks.contracts.files import table_writer, write_table
from feedworks.contracts.retention import CATALOGUE, SAMPLES, SPLITS, label_of
from feedworks.errors import DataError
from feedworks.ocarm.config import SamplesConfig
from feedworks.ocarm.event_log import (
    DAY_US,
    SECOND_US,
    Categories,
    Events,
    IntArray,
    Span,
    first_at_least,
    read_blocks,
    read_span,
)
from feedworks.ocarm.item_tables import ItemTables
from feedworks.ocarm.tables import (
    Conversions,
    ad_context,
    aggregates,
    find_conversions,
    onboarding,
    times,
    user_profiles,
)
from feedworks.progress import Progress
from feedworks.storage import atomic_folder, write_json

BID_LEAD_US = SECOND_US
REPORT = "samples.json"


class Built(NamedTuple):
    """How many samples there are, by split, and how many conversions are none."""

    num_samples: int
    num_users: int
    num_conversions: int
    num_open: int
    num_embargoed: int
    rows: dict[str, int]
    positive: dict[str, float]


def build_samples(data_dir: Path, out_samples: Path, out_tables: Path, cfg: SamplesConfig) -> Built:
    """Makes the samples and the feature tables of a retention data folder.

    Users are read a bounded number of events at a time, so the log may be larger than memory.

    Args:
        data_dir: A retention data folder that has passed the gate.
        out_samples: Gets samples.parquet, the catalogue and what was counted (samples.json).
        out_tables: Gets one parquet file per feature table of users, items and authors.
        cfg: What a conversion is, the windows and the split.

    Raises:
        DataError: A table is missing or out of order, the log is too short for the longest label window, or
            a split would be empty.
    """
    span = read_span(data_dir)
    categories, items = Categories(data_dir), ItemTables(data_dir)
    parts: list[pa.Table] = []
    num_conversions = 0
    with ExitStack() as stack:
        tables = stack.enter_context(atomic_folder(out_tables))
        folder = stack.enter_context(atomic_folder(out_samples))
        contracts = (USER_PROFILE, INTERACTION_AGGREGATES, AD_CONTEXT, ONBOARDING)
        write = [stack.enter_context(table_writer(contract, tables)) for contract in contracts]
        shown = stack.enter_context(Progress("events", total=span.num_events))
        for events in read_blocks(data_dir):
            conversions = find_conversions(events, cfg)
            num_conversions += len(conversions.event_R)
            write[0](user_profiles(data_dir, events, span))
            write[1](aggregates(events, categories, cfg))
            write[2](ad_context(events, conversions, cfg))
            write[3](onboarding(events, conversions, categories, span, cfg))
            items.add(events)
            parts.append(_labelled(events, conversions, span, cfg))
            shown.advance(len(events.user_E))
        labelled = pa.concat_tables(parts)
        if not len(labelled):
            raise DataError(_none_labelled(num_conversions, span, cfg))
        rows, num_embargoed = _split(labelled, cfg)
        write_table(SAMPLES, rows, folder)
        items.write(tables)
        shutil.copyfile(CATALOGUE.path(data_dir), CATALOGUE.path(folder))
        built = _summary(rows, num_conversions, num_conversions - len(labelled), num_embargoed, cfg)
        write_json(folder / REPORT, built._asdict())
    return built


def label_start_us(content_start_R: IntArray, cfg: SamplesConfig) -> IntArray:
    """When revisits start to count: after the content window, in `overlap` one day after the conversion."""
    days = 1 if cfg.overlap else cfg.content_days
    return content_start_R + days * DAY_US


def _labelled(events: Events, conversions: Conversions, span: Span, cfg: SamplesConfig) -> pa.Table:
    """Samples without number and split: the conversions whose label windows lie inside the log."""
    label_start_R = label_start_us(events.time_E[conversions.event_R], cfg)
    closed_R = label_start_R + cfg.horizons[-1] * DAY_US <= span.end_us
    event_R, label_start_R = conversions.event_R[closed_R], label_start_R[closed_R]
    time_R, item_R = events.time_E[event_R], events.item_E[event_R]
    active_RD = _active_days(events, event_R, label_start_R, cfg.horizons[-1])
    return pa.table(
        {
            "user_id": events.user_E[event_R],
            "bid_time": times(time_R - BID_LEAD_US),
            "surface": events.surface_E[event_R],
            "ad_item": item_R if cfg.landing_item else pa.nulls(len(event_R), pa.int64()),
            "content_start": times(time_R),
            "content_end": times(time_R + cfg.content_days * DAY_US),
            "label_start": times(label_start_R),
            **{label_of(days): active_RD[:, :days].mean(1).astype(np.float32) for days in cfg.horizons},
        }
    )


def _active_days(
    events: Events, event_R: IntArray, start_us_R: IntArray, num_days: int
) -> npt.NDArray[np.bool_]:
    """Whether the user of each conversion has an event in each of the 24-hour periods from `start_us_R`."""
    end_R = events.end_E[event_R]
    before_R = first_at_least(events.time_E, event_R, end_R, start_us_R)
    active_RD = np.zeros((len(event_R), num_days), bool)
    for day in range(num_days):
        after_R = first_at_least(events.time_E, before_R, end_R, start_us_R + (day + 1) * DAY_US)
        active_RD[:, day] = after_R > before_R
        before_R = after_R
    return active_RD


def _split(found: pa.Table, cfg: SamplesConfig) -> tuple[pa.Table, int]:
    """The samples in order, with number and split; and how many the embargo leaves out."""
    found = found.sort_by([("bid_time", "ascending"), ("user_id", "ascending")])
    bid_R = found["bid_time"].cast(pa.int64()).to_numpy()
    closed_R = found["label_start"].cast(pa.int64()).to_numpy() + cfg.horizons[-1] * DAY_US
    # Samples of one moment stay together: the cut is a time, not a row.
    test_us = _cut(bid_R, cfg.test_share)
    known_R = (bid_R < test_us) & ((closed_R <= test_us) | (not cfg.embargo))
    valid_us = _cut(bid_R[known_R], cfg.valid_share / (1 - cfg.test_share))
    split_R = np.select([bid_R >= test_us, bid_R >= valid_us], [SPLITS[2], SPLITS[1]], SPLITS[0])
    kept_R = known_R | (bid_R >= test_us)
    lacking = [split for split in SPLITS if split not in split_R[kept_R]]
    if lacking:
        hint = " or set samples.embargo=false" if cfg.embargo else ""
        raise DataError(
            f"of {len(bid_R):,} samples {int((bid_R >= test_us).sum()):,} are in the test period and "
            f"{int(known_R.sum()):,} before it with labels known by then: no {lacking[0]} split; bring a "
            f"longer log or more users{hint}"
        )
    rows = found.append_column("split", pa.array(split_R)).filter(pa.array(kept_R))
    return rows.append_column("sample_id", pa.array(np.arange(len(rows)))), int((~kept_R).sum())


def _cut(time_R: IntArray, share: float) -> int:
    """The time from which on `share` of the rows stand; 0 where there are no rows."""
    return int(time_R[int(len(time_R) * (1 - share))]) if len(time_R) else 0


def _summary(
    rows: pa.Table, num_conversions: int, num_open: int, num_embargoed: int, cfg: SamplesConfig
) -> Built:
    split_R = rows["split"].to_numpy(zero_copy_only=False)
    return Built(
        num_samples=len(rows),
        num_users=len(rows["user_id"].unique()),
        num_conversions=num_conversions,
        num_open=num_open,
        num_embargoed=num_embargoed,
        rows={split: int((split_R == split).sum()) for split in SPLITS},
        positive={
            label_of(days): float((rows[label_of(days)].to_numpy() > 0).mean()) for days in cfg.horizons
        },
    )


def _none_labelled(num_conversions: int, span: Span, cfg: SamplesConfig) -> str:
    days = (span.end_us - span.start_us) / DAY_US
    return (
        f"none of {num_conversions:,} conversions has its labels inside the log of {days:.1f} days; bring a "
        f"longer log, or set samples.horizons={cfg.horizons} or samples.idle_days={cfg.idle_days:g} lower"
    )
