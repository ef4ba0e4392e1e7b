"""Labels of one kind, and labels among the observables, are found before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.errors import DataError
from feedworks.ocarm.config import resolve
from feedworks.ocarm.label_audit import LabelAudit, audit_labels
from feedworks.reports.html import Report
from feedworks.storage import read_json

from . import served

CFG = resolve("tiny")
ROWS = {"train": 400, "valid": 100, "test": 100}


def write(folder: Path, **changes: Any) -> Path:
    """Observables whose labels nothing tells, but for `changes`: column -> function of the table."""
    num_rows = sum(ROWS.values())
    path = served.write_observables(folder, num_rows=num_rows) / "observables.parquet"
    table = pq.read_table(path)
    splits = [split for split, rows in ROWS.items() for _ in range(rows)]
    for column, change in {"split": lambda _: splits, **changes}.items():
        place = table.column_names.index(column)
        values = pa.array(change(table), table.schema.field(column).type, from_pandas=True)
        table = table.set_column(place, column, values)
    pq.write_table(table, path)
    return folder


def audit(folder: Path, **changes: Any) -> LabelAudit:
    return audit_labels(write(folder, **changes), CFG)


def came(table: pa.Table, label: str = "lt1") -> np.ndarray:
    return np.asarray(table[label].to_numpy() > 0)


def test_labels_that_nothing_tells_pass(tmp_path: Path) -> None:
    found = audit(tmp_path / "seen")
    found.require_clean()
    assert {(c.label, c.split): c.num_rows for c in found.counts} == {
        (label, split): rows for label in ("lt1", "lt7") for split, rows in ROWS.items()
    }
    assert found.scores[0].auc < 0.7
    assert found.scores == tuple(sorted(found.scores, key=lambda score: -score.auc))
    columns = {score.column for score in found.scores}
    assert columns == {*served.SCHEMA.columns, "surface", "ad_item"}
    page = Report("a", "b")
    found.write(tmp_path, page)
    page.write(tmp_path / "page.html")
    said = (tmp_path / "page.html").read_text()
    assert "came back" in said
    assert "TOO MUCH" not in said
    assert len(read_json(tmp_path / "labels.json")["scores"]) == len(found.scores)


@pytest.mark.parametrize(
    ("label", "split", "value", "said"),
    [
        ("lt7", "valid", 0.0, "lt7, valid: none of 100 users came back"),
        ("lt1", "test", 1.0, "lt1, test: all of 100 users came back"),
        ("lt1", "train", 0.0, "lt1, train: none of 400 users came back"),
        ("lt7", "test", None, "lt7, test: none of 0 users came back"),
    ],
)
def test_labels_of_one_kind_are_told(
    tmp_path: Path, label: str, split: str, value: float | None, said: str
) -> None:
    def change(table: pa.Table) -> list[float | None]:
        pairs = zip(table["split"].to_pylist(), table[label].to_pylist(), strict=True)
        return [value if of == split else before for of, before in pairs]

    found = audit(tmp_path, **{label: change})
    with pytest.raises(DataError, match=f"^{said}; bring more samples or a longer log$"):
        found.require_clean()


def lists(table: pa.Table, column: str, change: Any) -> list[Any]:
    rows = zip(table[column].to_pylist(), came(table), strict=True)
    return [values if not values else change(values, bool(label)) for values, label in rows]


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("num_events_7d", lambda t: came(t).astype(int), r"num_events_7d \(value\): its AUC of lt1"),
        ("tenure_days", lambda t: 900 - t["lt7"].to_numpy(), r"tenure_days \(value\): its AUC of lt7"),
        (
            "profile_time",
            lambda t: t["bid_time"].cast(pa.int64()).to_numpy() - 10**9 * (1 + came(t)),
            r"profile_time \(value\): its AUC of lt1",
        ),
        (
            "activity",
            lambda t: np.where(came(t), 7, np.where(np.arange(len(t)) % 3, 3, 11)),
            r"activity \(value, by value\): its AUC of lt1",
        ),
        (
            "mean_engagement_7d",
            lambda t: np.where(came(t), np.nan, t["mean_engagement_7d"].to_numpy(zero_copy_only=False)),
            r"mean_engagement_7d \(\w+\): its AUC of lt1",
        ),
        (
            "return_idle_h",
            lambda t: lists(t, "return_idle_h", lambda values, label: [*values[:-1], 48.0 + label]),
            r"return_idle_h \(last\): its AUC of lt1",
        ),
        (
            "history_engagement",
            lambda t: lists(t, "history_engagement", lambda values, label: [0.2 + 0.6 * label] * len(values)),
            r"history_engagement \((mean|last)\): its AUC of lt1",
        ),
        (
            "return_surface",
            lambda t: [[1] * (3 + label) for label in came(t)],
            r"return_surface \(number\): its AUC of lt1",
        ),
    ],
)
def test_a_label_in_an_observable_column_is_found(
    tmp_path: Path, column: str, change: Any, said: str
) -> None:
    found = audit(tmp_path, **{column: change})
    with pytest.raises(
        DataError, match=rf"column {said} on the training rows is [01]\.\d+, over gate.max_obs"
    ):
        found.require_clean()


def test_few_rows_prove_nothing(tmp_path: Path) -> None:
    """Nineteen users of one kind are told apart by some column of fifty."""
    rare = np.zeros(sum(ROWS.values()))
    rare[:19] = rare[-5:] = rare[400:405] = 1
    found = audit(tmp_path, lt1=lambda _: rare, num_events_7d=lambda _: rare.astype(int))
    assert {score.label for score in found.scores} == {"lt7"}
    found.require_clean()
