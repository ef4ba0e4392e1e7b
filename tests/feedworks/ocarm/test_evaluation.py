"""The comparison of arms on predictions whose quality is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feedworks.errors import DataError
from feedworks.metrics.classification import auc
from feedworks.metrics.ranking import Interval
from feedworks.ocarm.arms import ARMS
from feedworks.ocarm.config import resolve
from feedworks.ocarm.evaluation import GAIN, Evaluated, evaluate_arms
from feedworks.ocarm.report import write_report

CONFIG = resolve("tiny", ["evaluation.seeds=0,1", "evaluation.bootstrap=300", "evaluation.bins=4"])
NUM_ROWS, DAY_US = 2000, 86_400_000_000
# What is added to the truth before an arm orders by it.
NOISE = {"upper": 1.0, "ocarm": 2.0, "logit": 2.5, "sfe": 3.0, "base": 4.0, "joint": 8.0}


def truth(seed: int = 0) -> tuple[np.ndarray, pa.Table]:
    rng = np.random.default_rng(seed)
    logit_N = rng.standard_normal(NUM_ROWS) * 1.5
    label_N = (rng.random(NUM_ROWS) < 1 / (1 + np.exp(-logit_N))).astype(np.float32)
    lt7_N = (label_N * rng.integers(1, 8, NUM_ROWS) / 7).astype(np.float32)
    bid_N = np.arange(NUM_ROWS) * 1_000_000 + 50 * DAY_US
    rows = pa.table(
        {
            "sample_id": np.arange(NUM_ROWS),
            "user_id": rng.integers(200, size=NUM_ROWS),
            "bid_time": pa.array(bid_N).cast(pa.timestamp("us", tz="UTC")),
            "aggregated_time": pa.array(bid_N - DAY_US * rng.integers(2, 20, NUM_ROWS), mask=bid_N % 7 == 0),
            "lt1": label_N,
            "lt7": pa.array(lt7_N, mask=np.arange(NUM_ROWS) % 50 == 0),
            "split": np.where(np.arange(NUM_ROWS) < 800, "valid", "test"),
        }
    )
    return logit_N, rows


def predictions(logit_N: np.ndarray, rows: pa.Table, arms: Sequence[str] = ARMS) -> pa.Table:
    parts = []
    for arm in arms:
        for seed in CONFIG.evaluation.seeds:
            rng = np.random.default_rng([len(arm), seed])
            for split in ("valid", "test"):
                here = np.flatnonzero(rows["split"].to_numpy() == split)
                order = rng.permutation(here)
                noisy = (logit_N + NOISE[arm] * rng.standard_normal(NUM_ROWS))[order]
                columns = {
                    "arm": [arm] * len(order),
                    "seed": [seed] * len(order),
                    "split": [split] * len(order),
                }
                near = pa.array(np.tanh(logit_N[order]), mask=np.full(len(order), arm != "ocarm"))
                columns |= {"sample_id": order, "logit_lt1": noisy, "logit_lt7": noisy}
                parts.append(pa.table(columns | {"similarity_lt1": near, "similarity_lt7": near}))
    return pa.concat_tables(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("observables")
    pq.write_table(truth()[1], path / "observables.parquet")
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> Evaluated:
    return evaluate_arms(predictions(*truth()), folder, CONFIG)


def test_auc_is_the_mean_over_seeds_whatever_the_order_of_rows(found: Evaluated) -> None:
    table, rows = predictions(*truth()).to_pandas(), truth()[1].to_pandas().set_index("sample_id")
    for arm in ARMS:
        mine = table[(table.arm == arm) & (table.split == "test")]
        each = [auc(rows.lt1[part.sample_id].to_numpy(), part.logit_lt1) for _, part in mine.groupby("seed")]
        assert found.metrics[f"test/{arm}/auc@1"] == pytest.approx(np.mean(each), abs=1e-12)
        assert [auc_of[1] for name, _, auc_of in found.per_seed if name == arm] == pytest.approx(each)


def test_rows_without_a_label_are_left_out(found: Evaluated) -> None:
    assert sum(each.num_rows for each in found.calibration[7]["base"]) == 1200 - 24
    assert sum(each.num_rows for each in found.calibration[1]["base"]) == 1200


def test_gains_and_the_recovered_share_come_from_the_same_aucs(found: Evaluated) -> None:
    value = found.metrics
    gain = value["test/ocarm/auc@1"] - value["test/base/auc@1"]
    gap = value["test/upper/auc@1"] - value["test/base/auc@1"]
    assert value["gain/ocarm/auc@1"] == pytest.approx(gain)
    assert value["recovered/ocarm/share@1"] == pytest.approx(gain / gap)
    assert value[GAIN] == pytest.approx((value["gain/ocarm/auc@1"] + value["gain/ocarm/auc@7"]) / 2)


def test_intervals_hold_the_mean_and_tell_arms_apart(found: Evaluated) -> None:
    for values in (*found.methods.values(), *found.gains.values(), {"share": found.recovered[1]}):
        for value in values.values():
            if isinstance(value, Interval):
                assert value.low < value.mean < value.high
    assert found.gains["ocarm"]["auc@1"].low > 0 > found.gains["joint"]["auc@1"].mean


def test_paired_intervals_are_narrower_than_those_of_each_arm(found: Evaluated) -> None:
    ours, gain = found.methods["ocarm"]["auc@1"], found.gains["ocarm"]["auc@1"]
    base = found.methods["base"]["auc@1"]
    assert gain.high - gain.low < (ours.high - ours.low) + (base.high - base.low)


def test_similarity_is_shown_against_gain_on_validation(found: Evaluated) -> None:
    bins = found.similarity[1]
    assert sum(each.num_rows for each in bins) == 800
    assert [each.similarity for each in bins] == sorted(each.similarity for each in bins)
    assert found.metrics["valid/ocarm/similarity@1"] == pytest.approx(np.tanh(truth()[0][:800]).mean())


def test_a_missing_arm_and_a_missing_row_are_named(folder: Path) -> None:
    table = predictions(*truth())
    with pytest.raises(DataError, match="arm upper, seed 0: 0 predictions for 1200 rows of test"):
        evaluate_arms(table.filter(pc.not_equal(table["arm"], "upper")), folder, CONFIG)
    some = evaluate_arms(table.filter(pc.not_equal(table["arm"], "joint")), folder, CONFIG)
    assert list(some.methods) == [arm for arm in ARMS if arm != "joint"]
    with pytest.raises(DataError, match="arm base, seed 0: 1199 predictions"):
        evaluate_arms(_without_one(table), folder, CONFIG)


def _without_one(table: pa.Table) -> pa.Table:
    drop = (table["arm"].to_numpy() == "base") & (table["seed"].to_numpy() == 0)
    first = np.flatnonzero(drop & (table["split"].to_numpy() == "test"))[0]
    return table.filter(pa.array(np.arange(len(table)) != first))


def test_one_class_is_no_comparison(tmp_path: Path) -> None:
    logit_N, rows = truth()
    flat = rows.set_column(rows.schema.get_field_index("lt1"), "lt1", pa.array(np.ones(NUM_ROWS, np.float32)))
    pq.write_table(flat, tmp_path / "observables.parquet")
    with pytest.raises(DataError, match="test, lt1: all users came back or none did"):
        evaluate_arms(predictions(logit_N, rows), tmp_path, CONFIG)


def test_a_run_is_not_lost_where_no_group_has_both_labels_and_no_arm_says_anything(tmp_path: Path) -> None:
    """Everybody once, and who was away for long never came back; every arm gives everybody the same."""
    logit_N, rows = truth()
    away_N = np.where(rows["lt1"].to_numpy() > 0, 2, 90) * DAY_US
    last = pa.array(rows["bid_time"].cast(pa.int64()).to_numpy() - away_N)
    for name, column in (("user_id", pa.array(np.arange(NUM_ROWS))), ("aggregated_time", last)):
        rows = rows.set_column(rows.column_names.index(name), name, column)
    pq.write_table(rows, tmp_path / "observables.parquet")
    said = predictions(logit_N, rows)
    flat = pa.array(np.zeros(len(said)))
    for name in ("logit_lt1", "logit_lt7"):
        said = said.set_column(said.column_names.index(name), name, flat)
    found = evaluate_arms(said, tmp_path, CONFIG)
    assert found.groups == {1: "split", 7: "split"}
    assert found.metrics["test/base/gauc@1"] == found.metrics["test/base/auc@1"] == 0.5
    assert found.recovered[1] == Interval(0.0, 0.0, 0.0)


def test_the_page_loads_nothing_and_shows_every_arm(found: Evaluated, tmp_path: Path) -> None:
    history = [{"epoch": 0.0, "step": 1.0, "train/loss": 0.7, "valid/auc": 0.6}]
    write_report(tmp_path / "report.html", found, {"teacher": history, "student": history}, CONFIG)
    text = (tmp_path / "report.html").read_text()
    assert text.lower().startswith("<!doctype html")
    for words in ("OCARM", "share recovered", "Calibration", "cosine of e_u and e_c", "logit distillation"):
        assert words in text
    assert not [word for word in ('src="http', "<link", "@import", "<script src") if word in text]
