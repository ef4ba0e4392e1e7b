"""Whether labels can be learned from, and whether one observable column alone gives a label away.

Every horizon needs users who came back and users who did not, in every split. And no column that a model
reads at bid time may tell them apart nearly without error: a copy of a label has no time that would show
where it is from. Every column is held against the label of every horizon, on training rows, by the AUC of

    value, null         the number itself, where there is one; whether there is one
    number, mean, last  of lists
    by value            of whole numbers the mean label of rows with the same one, taken from other rows

A time counts as the time until the bid. What only several columns tell together is left to the alarm on the
trained models (`gate.max_observable_auc`, too). Shapes: N rows, K values of all lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feedworks.contracts.features import SERVICES, student_service
from feedworks.contracts.files import read_file
from feedworks.contracts.retention import OBSERVABLES_FILE, SPLITS, label_of
from feedworks.errors import DataError
from feedworks.metrics.classification import auc
from feedworks.ocarm.columns import Lists, lists, numbers
from feedworks.ocarm.config import OcarmConfig
from feedworks.reports.html import Report
from feedworks.storage import write_json

SUMMARY = "labels.json"
# Of the samples' own columns those that a model reads.
REQUEST_COLUMNS = ("surface", "ad_item")
MAX_ROWS = 200_000
# With fewer rows of one label, chance alone comes near an AUC of 1.
MIN_ROWS = 20
MAX_SHOWN = 10

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class LabelCount(NamedTuple):
    """Rows of a split that have the label of a horizon, and how many of these came back."""

    label: str
    split: str
    num_rows: int
    num_returned: int

    @property
    def has_both(self) -> bool:
        """Whether some came back and some did not."""
        return 0 < self.num_returned < self.num_rows

    def __str__(self) -> str:
        share = "none" if not self.num_returned else "all"
        return f"{self.label}, {self.split}: {share} of {self.num_rows:,} users came back"


class ColumnScore(NamedTuple):
    """How well one column tells who came back: AUC from 0.5 to 1, whichever way round."""

    label: str
    column: str
    taken: str
    auc: float


class LabelAudit(NamedTuple):
    """All counts, and all columns with the most telling ones first."""

    counts: tuple[LabelCount, ...]
    scores: tuple[ColumnScore, ...]
    max_auc: float

    def require_clean(self) -> None:
        """Stop a run that can learn nothing, or whose labels are among its inputs.

        Raises:
            DataError: it names horizon, split and count, or column, label and AUC.
        """
        if lacking := [count for count in self.counts if not count.has_both]:
            raise DataError(f"{'; '.join(map(str, lacking))}; bring more samples or a longer log")
        for label, column, taken, value in self.scores[:1]:
            if value > self.max_auc:
                raise DataError(
                    f"{OBSERVABLES_FILE}, column {column} ({taken}): its AUC of {label} on the training rows "
                    f"is {value:.4f}, over gate.max_observable_auc={self.max_auc:g}: it is made from labels "
                    "or known too late; build it as of bid_time, or leave it out"
                )

    def write(self, folder: Path, page: Report) -> None:
        """Write labels.json into `folder` and add two tables to a page."""
        counts = [count._asdict() for count in self.counts]
        scores = [score._asdict() for score in self.scores]
        write_json(folder / SUMMARY, {"counts": counts, "scores": scores, "max_auc": self.max_auc})
        page.add_table(
            "Labels",
            ("label", "split", "rows", "came back", "result"),
            [(*count, "passed" if count.has_both else str(count)) for count in self.counts],
            "Every horizon needs users who came back and users who did not, in every split.",
        )
        page.add_table(
            "What single columns tell",
            ("label", "column", "taken as", "AUC", "result"),
            [
                (*score, "passed" if score.auc <= self.max_auc else "TOO MUCH")
                for score in self.scores[:MAX_SHOWN]
            ],
            f"The most telling of {len(self.scores):,}, on training rows; none may pass {self.max_auc:g}.",
        )


def audit_labels(observables_dir: Path, cfg: OcarmConfig) -> LabelAudit:
    """Count labels, and hold every observable column against them.

    Args:
        observables_dir: holds observables.parquet.
        cfg: horizons and the limit.

    Raises:
        DataError: the file or a column is missing.
    """
    names = [label_of(days) for days in cfg.samples.horizons]
    views = SERVICES[student_service(cfg.samples.landing_item)]
    columns = [*REQUEST_COLUMNS, *(c.name for table in views for c in table.features)]
    labels = read_file(observables_dir / OBSERVABLES_FILE, ["split", *names])
    counts = tuple(
        _count(labels.filter(pc.equal(labels["split"], split))[name], name, split)
        for name in names
        for split in SPLITS
    )
    if not all(count.has_both for count in counts):
        return LabelAudit(counts, (), cfg.gate.max_observable_auc)
    found: list[ColumnScore] = []
    train_N = _spread(np.flatnonzero(np.asarray(labels["split"].to_numpy(zero_copy_only=False)) == SPLITS[0]))
    path = observables_dir / OBSERVABLES_FILE
    rows = read_file(path, ["bid_time", *names, *columns]).take(pa.array(train_N))
    given = {name: rows[name] for name in rows.column_names}
    label_of_name = {name: numbers(given, name) for name in names}
    bid_N = np.asarray(rows["bid_time"].cast(pa.int64()).to_numpy(), np.float64)
    for column in columns:
        for taken, value_N in _values(given, column, bid_N):
            found += _scores(column, taken, value_N, label_of_name)
    ordered = sorted(found, key=lambda score: -score.auc)
    return LabelAudit(counts, tuple(ordered), cfg.gate.max_observable_auc)


def _count(label: pa.ChunkedArray, name: str, split: str) -> LabelCount:
    known = label.drop_null()
    return LabelCount(name, split, len(known), pc.sum(pc.greater(known, 0)).as_py() or 0)


def _spread(row_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """At most `MAX_ROWS` of the rows, evenly spread."""
    if len(row_N) <= MAX_ROWS:
        return row_N
    return row_N[np.linspace(0, len(row_N) - 1, MAX_ROWS).astype(np.int64)]


def _values(
    given: dict[str, pa.ChunkedArray], column: str, bid_N: FloatArray
) -> Iterator[tuple[str, FloatArray]]:
    """What is taken of a column: names and numbers `(N,)`, NaN where there is none."""
    type_, is_time = given[column].type, column.endswith("_time")
    if not pa.types.is_list(type_):
        value_N = numbers(given, column)
        yield "value", bid_N - value_N if is_time else value_N
        yield "null", np.isnan(value_N).astype(np.float64)
        return
    of = lists(given, column, np.int64 if pa.types.is_integer(type_.value_type) else np.float64)
    last_N, mean_N = _last(of), _mean(of)
    yield "number", of.length_B.astype(np.float64)
    yield "mean", bid_N - mean_N if is_time else mean_N
    yield "last", bid_N - last_N if is_time else last_N


def _last(of: Lists) -> FloatArray:
    last_N = np.full(len(of.length_B), np.nan)
    some_N = of.length_B > 0
    last_N[some_N] = of.value_K[(of.start_B + of.length_B - 1)[some_N]]
    return last_N


def _mean(of: Lists) -> FloatArray:
    row_K = np.repeat(np.arange(len(of.length_B)), of.length_B)
    known_K = np.isfinite(of.value_K)
    sum_N = np.bincount(row_K[known_K], weights=of.value_K[known_K], minlength=len(of.length_B))
    count_N = np.bincount(row_K[known_K], minlength=len(of.length_B))
    mean_N: FloatArray = np.divide(sum_N, count_N, out=np.full(len(count_N), np.nan), where=count_N > 0)
    return mean_N


def _scores(
    column: str, taken: str, value_N: FloatArray, labels: dict[str, FloatArray]
) -> Iterator[ColumnScore]:
    for name, label_N in labels.items():
        known_N = np.isfinite(label_N) & np.isfinite(value_N)
        came_N = label_N[known_N] > 0
        if min(came_N.sum(), (~came_N).sum()) < MIN_ROWS:
            continue
        value = value_N[known_N]
        yield _score(name, column, taken, came_N, value)
        if taken in ("value", "last") and not (value % 1).any():
            yield _score(name, column, f"{taken}, by value", came_N, _means_of_others(value, came_N))


def _score(label: str, column: str, taken: str, came_N: BoolArray, score_N: FloatArray) -> ColumnScore:
    found = auc(came_N.astype(np.int64), score_N)
    return ColumnScore(label, column, taken, max(found, 1 - found))


def _means_of_others(value_N: FloatArray, came_N: BoolArray) -> FloatArray:
    """For each row the mean label of the rows with its value in the other half: even and odd rows."""
    _, place_N = np.unique(value_N, return_inverse=True)
    half_N = np.arange(len(value_N)) % 2
    mean_N = np.empty(len(value_N))
    for half in (0, 1):
        other_N = half_N != half
        count = np.bincount(place_N[other_N], minlength=place_N.max() + 1)
        came = np.bincount(place_N[other_N], weights=came_N[other_N], minlength=len(count))
        # One more row of the overall mean, so that a value met once says little.
        mean_N[~other_N] = ((came + came_N.mean()) / (count + 1))[place_N[~other_N]]
    return mean_N
