"""The proof that no observable lies after bid time and no label before the end of the content window.

For every sample `observable times <= bid_time < content_start <= content times < content_end <= label_start`
must hold, the windows must have the length that the settings say, and labels must be shares of their days.
Rows that were exchanged show in their times as well: nobody who converts had events in the idle time before,
content begins with the conversion, and splits follow each other.
With `samples.overlap` labels begin one day after the conversion instead of after the content window; nothing
else is excused. Shapes: N samples, K values of all lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feedworks.contracts.features import (
    ONBOARDING,
    PARALLEL_LISTS,
    SERVICES,
    FeatureTable,
    student_service,
)
from feedworks.contracts.files import read_file, read_table
from feedworks.contracts.retention import CONTENT_FILE, HORIZONS, OBSERVABLES_FILE, SAMPLES, SPLITS, label_of
from feedworks.errors import DataError
from feedworks.ocarm.config import SamplesConfig
from feedworks.ocarm.event_log import DAY_US, SECOND_US, IntArray
from feedworks.reports.html import Report
from feedworks.storage import write_json

REPORT, SUMMARY = "times.html", "times.json"
MAX_EXAMPLES = 3
# A time in seconds or milliseconds would lie in January 1970, before any bid, and prove nothing.
EARLIEST_US = 315_532_800 * SECOND_US  # 1980-01-01
# Times of the user's events before the conversion.
EVENT_TIMES = ("history_time", "aggregated_time")
CONTENT_COLUMNS = tuple(column.name for column in ONBOARDING.features)
# Per row the least and greatest value of a column of times or lists of times; NaN where there is none.
Extremes = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
BoolArray = npt.NDArray[np.bool_]


class AuditCheck(NamedTuple):
    """One rule: how many rows it was asked of, how many break it, and the first of these."""

    rule: str
    num_rows: int
    num_failed: int
    examples: tuple[str, ...]


class Audit(NamedTuple):
    """All rules, held against every row."""

    num_rows: int
    overlap: bool
    checks: tuple[AuditCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether no row breaks any rule."""
        return not self.failures

    @property
    def failures(self) -> tuple[AuditCheck, ...]:
        """Rules that some row breaks."""
        return tuple(check for check in self.checks if check.num_failed)

    def require_clean(self) -> None:
        """Stops the caller where a rule is broken.

        Raises:
            DataError: Names each broken rule, how many rows break it, and the first of them.
        """
        if self.passed:
            return
        broken = " | ".join(
            f"{check.rule}: {check.num_failed:,} of {check.num_rows:,} rows break it "
            f"({'; '.join(check.examples)})"
            for check in self.failures
        )
        raise DataError(f"times are out of order: {broken}; build the samples and the training set again")

    def write(self, folder: Path, page: Report | None = None) -> None:
        """Writes times.html and times.json into `folder`."""
        write_json(folder / SUMMARY, {**self._asdict(), "checks": [c._asdict() for c in self.checks]})
        (page or self.page()).write(folder / REPORT)

    def page(self) -> Report:
        """The page with all rules."""
        state = "in order" if self.passed else "OUT OF ORDER"
        mode = "labels overlap the content window, as samples.overlap asks" if self.overlap else "no overlap"
        page = Report("Times of the samples", f"{state}; {self.num_rows:,} samples; {mode}")
        rows = [(c.rule, c.num_rows, c.num_failed, _result(c)) for c in self.checks]
        note = "Every rule is held against every row; a row is asked where it has the value."
        page.add_table("Rules", ("rule", "rows asked", "rows that break it", "result"), rows, note)
        return page


def audit_times(
    observables_dir: Path, content_dir: Path | None, cfg: SamplesConfig, samples_dir: Path | None = None
) -> Audit:
    """Holds all rules against every row of a training set.

    Args:
        observables_dir: Holds observables.parquet: the columns of the samples and what models read.
        content_dir: Holds content.parquet, with a row for each sample; None where there is none.
        cfg: The windows as they should be.
        samples_dir: Holds samples.parquet, from which the training set was made; None where there is none.

    Raises:
        DataError: A file or a column of times is missing, so that nothing can be proven.
    """
    table = read_file(observables_dir / OBSERVABLES_FILE)
    lacking = [
        name for name in (*SAMPLES.schema.names, *_observable_times(cfg)) if name not in table.column_names
    ]
    if lacking:
        raise DataError(
            f"{observables_dir / OBSERVABLES_FILE} lacks columns {', '.join(lacking)}, without which the "
            "order of times cannot be proven; build the training set again"
        )
    rules = _Rules(table["sample_id"].to_numpy())
    if samples_dir is not None:
        _audit_join(rules, table, read_table(SAMPLES, samples_dir))
    _audit_windows(rules, table, cfg)
    _audit_observables(rules, table, cfg)
    _audit_labels(rules, table, cfg)
    if content_dir is not None:
        _audit_content(rules, table, read_file(content_dir / CONTENT_FILE))
    return Audit(len(table), cfg.overlap, tuple(rules.checks))


class _Rules:
    """Collects checks; each names the rows by sample id."""

    def __init__(self, sample_id_N: IntArray) -> None:
        self.checks: list[AuditCheck] = []
        self._sample_id_N = sample_id_N

    def add(
        self,
        rule: str,
        holds_N: BoolArray,
        asked_N: BoolArray | None = None,
        shown: Callable[[int], str] | None = None,
    ) -> None:
        """Adds a rule; rows that are not asked pass."""
        asked_N = np.ones(len(holds_N), bool) if asked_N is None else asked_N
        failed = np.flatnonzero(asked_N & ~holds_N)
        examples = tuple(
            f"sample {self._sample_id_N[row]}" + (f": {shown(int(row))}" if shown else "")
            for row in failed[:MAX_EXAMPLES]
        )
        self.checks.append(AuditCheck(rule, int(asked_N.sum()), len(failed), examples))

    def before(
        self, rule: str, early: tuple[str, npt.NDArray[np.float64]], late: tuple[str, IntArray]
    ) -> None:
        """Adds the rule that `early` is not after `late`; rows whose `early` is NaN are not asked."""
        (early_name, early_N), (late_name, late_N) = early, late
        self.add(
            rule,
            early_N <= late_N,
            ~np.isnan(early_N),
            lambda row: f"{early_name} {_utc(early_N[row])}, {late_name} {_utc(late_N[row])}",
        )


def _audit_join(rules: _Rules, table: pa.Table, samples: pa.Table) -> None:
    """The samples' own columns must have come through the join, each value in its row."""
    same = {name: np.zeros(len(table), bool) for name in samples.column_names}
    if len(samples) == len(table):
        same = {name: _equal(table[name], samples[name]) for name in samples.column_names}
    changed = [name for name, same_N in same.items() if not same_N.all()]
    named = f" ({', '.join(changed)})" if changed else ""
    rules.add(
        f"columns of the samples are those of samples.parquet{named}",
        np.all(list(same.values()), axis=0),
    )


def _audit_windows(rules: _Rules, table: pa.Table, cfg: SamplesConfig) -> None:
    names = ("bid_time", "content_start", "content_end", "label_start")
    rules.add(
        "samples have a number of their own and all their times",
        _unique(table["sample_id"].to_numpy()) & ~np.any([_nulls(table[name]) for name in names], axis=0),
    )
    bid_N, start_N, end_N, label_N = (_micros(table[name]) for name in names)
    rules.add("bid_time < content_start", bid_N < start_N)
    rules.add(
        f"content_end = content_start + {cfg.content_days} x 24 h",
        end_N == start_N + cfg.content_days * DAY_US,
    )
    if cfg.overlap:
        rules.add("label_start = content_start + 24 h (overlap)", label_N == start_N + DAY_US)
    else:
        rules.add("content_end <= label_start", end_N <= label_N)
    split_N = table["split"].to_numpy(zero_copy_only=False)
    test_N = split_N == SPLITS[2]
    rules.add("split is train, valid or test", np.isin(split_N, SPLITS))
    train_N, valid_N = split_N == SPLITS[0], split_N == SPLITS[1]
    if valid_N.any():
        rules.add("bid_time of train < that of valid", bid_N < bid_N[valid_N].min(), train_N)
    if test_N.any():
        first_us = bid_N[test_N].min()
        rules.add("bid_time of train and valid < that of test", bid_N < first_us, ~test_N)
        if cfg.embargo:
            closed_N = label_N + cfg.horizons[-1] * DAY_US
            rules.add("labels of train and valid end before test begins", closed_N <= first_us, ~test_N)


def _audit_observables(rules: _Rules, table: pa.Table, cfg: SamplesConfig) -> None:
    leaked = [name for name in CONTENT_COLUMNS if name in table.column_names]
    rules.add(
        f"no column of {ONBOARDING.name} among the observables"
        + (f" ({', '.join(leaked)})" if leaked else ""),
        np.full(len(table), not leaked),
    )
    foreign = sorted(set(table.column_names) - {*SAMPLES.schema.names, *_observable_columns(cfg), *leaked})
    rules.add(
        f"no column besides those of the samples and of {student_service(cfg.landing_item)}"
        + (f" ({', '.join(foreign)})" if foreign else ""),
        np.full(len(table), not foreign),
    )
    for view in _views(cfg):
        _audit_untimed(rules, table, view)
    bid_N = _micros(table["bid_time"])
    lapsed_N = _micros(table["content_start"]) - round(cfg.idle_days * DAY_US)
    for name in _time_columns(table):
        try:
            low_N, high_N = _extremes(table[name])
        except (ValueError, TypeError):
            raise DataError(
                f"{OBSERVABLES_FILE}, column {name}: {table[name].type} is no time; "
                "build the training set again"
            ) from None
        rules.before(f"{name} <= bid_time", (name, high_N), ("bid_time", bid_N))
        rules.add(f"{name} is in microseconds", low_N >= EARLIEST_US, ~np.isnan(low_N))
        if name in EVENT_TIMES:  # events between would be those of somebody who was not away
            late = ("the conversion less the idle time", lapsed_N)
            rules.before(f"{name} <= content_start - {cfg.idle_days:g} x 24 h", (name, high_N), late)


def _audit_untimed(rules: _Rules, table: pa.Table, view: FeatureTable) -> None:
    """A value without a time may be from any time: nothing would be proven of it."""
    names = [column.name for column in view.features if column.name in table.column_names]
    known_N = ~np.all([_nulls(table[name]) for name in names], axis=0)
    for name in names:
        if name.endswith("_time") and name not in PARALLEL_LISTS[view.name]:
            rules.add(f"{name} is there where {view.name} is", ~_nulls(table[name]), known_N)
    lists = [name for name in PARALLEL_LISTS[view.name] if name in names]
    for name in lists:
        if name.endswith("_time"):
            timed_N = _num_known(table[name])
            others = [other for other in lists if other != name]
            equal_N = np.all([_lengths(table[other]) == timed_N for other in lists], axis=0)
            rules.add(f"{', '.join(others)} have a {name} for each value", equal_N, known_N)


def _audit_labels(rules: _Rules, table: pa.Table, cfg: SamplesConfig) -> None:
    for days in HORIZONS:
        name = label_of(days)
        null_N = _nulls(table[name])
        label_N = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        inside_N = np.isfinite(label_N) & (label_N >= 0) & (label_N <= 1)
        whole_N = np.abs(label_N * days - np.round(label_N * days)) < 1e-3
        rules.add(
            f"{name} in [0, 1], in steps of 1/{days}",
            inside_N & whole_N,
            ~null_N,
            lambda row, label_N=label_N: f"{label_N[row]:g}",  # type: ignore[misc]
        )
        if days in cfg.horizons:
            rules.add(f"{name} is there", ~null_N)


def _audit_content(rules: _Rules, table: pa.Table, content: pa.Table) -> None:
    lacking = [name for name in ("sample_id", "content_time") if name not in content.column_names]
    if lacking:
        raise DataError(f"{CONTENT_FILE} lacks columns {', '.join(lacking)}; build the training set again")
    ids, sample_id_N = content["sample_id"].to_numpy(), table["sample_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    place_N = order[np.searchsorted(ids, sample_id_N, sorter=order).clip(max=max(len(ids) - 1, 0))]
    found_N = ids[place_N] == sample_id_N if len(ids) else np.zeros(len(sample_id_N), bool)
    same_N = found_N & (len(ids) == len(sample_id_N))
    rules.add("each sample has one row of content", same_N)
    low_N, high_N = (
        x[place_N] if len(ids) else np.full(len(found_N), np.nan) for x in _extremes(content["content_time"])
    )
    start_N, end_N = _micros(table["content_start"]), _micros(table["content_end"])
    # The conversion is the first event of its own content: of another sample's it is not.
    rules.add("content_time begins with content_start", start_N == low_N, found_N & ~np.isnan(low_N))
    rules.add(
        "content_time < content_end",
        high_N < end_N,
        found_N & ~np.isnan(high_N),
        lambda row: f"content_time {_utc(high_N[row])}, content_end {_utc(end_N[row])}",
    )


def _result(check: AuditCheck) -> str:
    if check.num_failed:
        return "; ".join(check.examples)
    return "passed" if check.num_rows else "no row has it"


def _views(cfg: SamplesConfig) -> tuple[FeatureTable, ...]:
    return SERVICES[student_service(cfg.landing_item)]


def _observable_columns(cfg: SamplesConfig) -> Iterator[str]:
    for table in _views(cfg):
        yield from (column.name for column in table.features)


def _observable_times(cfg: SamplesConfig) -> Iterator[str]:
    yield from (name for name in _observable_columns(cfg) if name.endswith("_time"))


def _time_columns(table: pa.Table) -> Sequence[str]:
    """Columns with times that a model may read: all by their name, not only those of the contract."""
    given = set(SAMPLES.schema.names)
    return [name for name in table.column_names if name.endswith("_time") and name not in given]


def _extremes(column: pa.ChunkedArray) -> Extremes:
    """Least and greatest time of each row in microseconds, of a list or of the value itself."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # a table of several chunks stays one, an empty one has none
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], column.type)
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        known_N = _floats(values)
        return known_N, known_N
    low_N = np.full(len(values), np.nan)
    high_N = low_N.copy()
    row_K, time_K = pc.list_parent_indices(values).to_numpy(), _floats(pc.list_flatten(values))
    row_K, time_K = row_K[~np.isnan(time_K)], time_K[~np.isnan(time_K)]
    np.fmin.at(low_N, row_K, time_K)
    np.fmax.at(high_N, row_K, time_K)
    return low_N, high_N


def _floats(values: pa.Array) -> npt.NDArray[np.float64]:
    """As float64, NaN where null: exact for microseconds until the year 2255."""
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us", tz=values.type.tz)).cast(pa.int64())
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _micros(column: pa.ChunkedArray) -> IntArray:
    return np.asarray(pc.fill_null(column.cast(pa.int64()), 0).to_numpy())


def _equal(column: pa.ChunkedArray, other: pa.ChunkedArray) -> BoolArray:
    """Row by row; two nulls are equal."""
    equal = pc.fill_null(pc.equal(column.cast(other.type), other), False)
    return np.asarray(equal.to_numpy(), bool) | (_nulls(column) & _nulls(other))


def _nulls(column: pa.ChunkedArray) -> BoolArray:
    return np.asarray(pc.is_null(column).to_numpy())


def _lengths(column: pa.ChunkedArray) -> IntArray:
    """Values in each row's list, 0 for a null row."""
    return np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(), np.int64)


def _num_known(column: pa.ChunkedArray) -> IntArray:
    """Values in each row's list that are not null."""
    row_K = pc.list_parent_indices(column).to_numpy()
    known_K = pc.is_valid(pc.list_flatten(column)).to_numpy()
    return np.bincount(row_K[known_K].astype(np.int64), minlength=len(column))


def _unique(values_N: IntArray) -> BoolArray:
    _, place_N, count = np.unique(values_N, return_inverse=True, return_counts=True)
    return np.asarray(count[place_N] == 1)


def _utc(time_us: float) -> str:
    return str(np.datetime64(int(time_us), "us"))
