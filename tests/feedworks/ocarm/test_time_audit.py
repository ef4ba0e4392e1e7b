"""The audit passes what the steps make, and finds each kind of planted violation in the row that has it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.features import ONBOARDING, PARALLEL_LISTS, SERVICES, STUDENT_SERVICE
from feedworks.contracts.files import read_table
from feedworks.contracts.retention import SAMPLES
from feedworks.errors import DataError
from feedworks.ocarm import steps
from feedworks.ocarm.config import SamplesConfig, resolve
from feedworks.ocarm.samples import build_samples
from feedworks.ocarm.time_audit import audit_times
from feedworks.storage import read_json

from .logs import DAY_US, random_log

CFG = SamplesConfig()
ROW = 7


def as_of(samples, time_name, tables, contracts):
    """The latest row of each table at the time of each sample, by a plain search."""
    columns = {}
    for contract in contracts:
        rows = read_table(contract, tables)
        keys = list(zip(rows["user_id"].to_pylist(), rows["event_time"].to_pylist(), strict=True))
        place = []
        for user, time in zip(samples["user_id"].to_pylist(), samples[time_name].to_pylist(), strict=True):
            known = [i for i, key in enumerate(keys) if key[0] == user and key[1] <= time]
            place.append(known[-1] if known else None)
        for column in contract.features:
            columns[column.name] = rows[column.name].take(pa.array(place, pa.int64()))
    return columns


def training_set(folder, cfg):
    build_samples(random_log(folder / "log", seed=2), folder / "samples", folder / "tables", cfg)
    samples = read_table(SAMPLES, folder / "samples")
    seen = as_of(samples, "bid_time", folder / "tables", SERVICES[STUDENT_SERVICE])
    met = as_of(samples, "content_end", folder / "tables", [ONBOARDING])
    for name, columns in (
        ("observables", {**{c: samples[c] for c in samples.column_names}, **seen}),
        ("content", {"sample_id": samples["sample_id"], **met}),
    ):
        (folder / name).mkdir()
        pq.write_table(pa.table(columns), folder / name / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("made"), CFG)


def changed(made, out, name, column, change):
    """A copy of the training set in which `change(values)` was done to a list of one column's values."""
    for other in ("observables", "content"):
        (out / other).mkdir(parents=True)
        table = pq.read_table(made / other / f"{other}.parquet")
        if other == name:
            values = table[column].to_pylist()
            change(values)
            place = table.column_names.index(column)
            table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
        pq.write_table(table, out / other / f"{other}.parquet")
    return out


def us(value):
    return round(value.timestamp() * 1e6)


def moved(by_us):
    def change(values):
        values[ROW] = pa.scalar(us(values[ROW]) + by_us, pa.timestamp("us", tz="UTC")).as_py()

    return change


def put(value, row=ROW):
    def change(values):
        values[row] = value

    return change


def test_what_the_steps_make_is_in_order(made, tmp_path):
    audit = audit_times(*folders(made), CFG, made / "samples")
    assert audit.passed
    audit.require_clean()
    rules = {check.rule: check for check in audit.checks}
    assert rules["bid_time < content_start"].num_rows == audit.num_rows > 50
    # Every observable time was looked at in every row that has it; nothing passed for want of values.
    for name in ("history_time", "return_time", "aggregated_time", "profile_time"):
        assert rules[f"{name} <= bid_time"].num_rows > audit.num_rows / 2
    assert rules["content_time begins with content_start"].num_rows == audit.num_rows
    audit.write(tmp_path)
    assert read_json(tmp_path / "times.json")["num_rows"] == audit.num_rows
    page = (tmp_path / "times.html").read_text()
    assert "in order" in page
    assert "OUT OF ORDER" not in page
    assert rules["columns of the samples are those of samples.parquet"].num_rows == audit.num_rows
    assert rules["aggregated_time <= content_start - 2 x 24 h"].num_rows > audit.num_rows / 2
    assert rules["bid_time of train < that of valid"].num_rows > audit.num_rows / 3
    # Nobody asked for 30 days, so that nothing was proven of them.
    assert rules["lt30 in [0, 1], in steps of 1/30"].num_rows == 0
    assert page.count("no row has it") == 1
    assert "history_time &lt;= bid_time" in page


def bid_us(made, row=ROW):
    return us(pq.read_table(made / "observables" / "observables.parquet")["bid_time"][row].as_py())


def last_with(made, name, column):
    """The last row that has a value in a column, which has to be found among all."""
    values = pq.read_table(made / name / f"{name}.parquet")[column].to_pylist()
    return max(row for row, value in enumerate(values) if value)


@pytest.mark.parametrize("column", ["history_time", "return_time", "aggregated_time", "profile_time"])
def test_an_observable_one_microsecond_after_bid_time_is_found(made, tmp_path, column):
    row = last_with(made, "observables", column)
    late_us = bid_us(made, row) + 1

    def change(values):
        values[row] = [*values[row][:-1], late_us] if isinstance(values[row], list) else late_us

    audit = audit_times(*folders(changed(made, tmp_path / "x", "observables", column, change)), CFG)
    of_events = column in ("history_time", "aggregated_time")
    late = [f"{column} <= bid_time"] + [f"{column} <= content_start - 2 x 24 h"] * of_events
    assert [(check.rule, check.num_failed) for check in audit.failures] == [(rule, 1) for rule in late]
    with pytest.raises(DataError, match=rf"{column} <= bid_time: 1 of \d+ rows break it \(sample {row}: "):
        audit.require_clean()


def folders(folder):
    return folder / "observables", folder / "content"


@pytest.mark.parametrize(
    ("name", "column", "change", "rule"),
    [
        ("observables", "bid_time", moved(1_000_000), "bid_time < content_start"),
        ("observables", "content_end", moved(-1), "content_end = content_start + 1 x 24 h"),
        ("observables", "content_end", moved(1), "content_end <= label_start"),
        ("observables", "label_start", moved(-1), "content_end <= label_start"),
        ("observables", "sample_id", put(8), "samples have a number of their own and all their times"),
        ("observables", "content_start", put(None), "samples have a number of their own and all their times"),
        ("observables", "lt7", put(1.5), "lt7 in [0, 1], in steps of 1/7"),
        ("observables", "lt7", put(-0.5), "lt7 in [0, 1], in steps of 1/7"),
        ("observables", "lt7", put(float("nan")), "lt7 in [0, 1], in steps of 1/7"),
        ("observables", "lt7", put(0.5), "lt7 in [0, 1], in steps of 1/7"),
        ("observables", "lt1", put(None), "lt1 is there"),
        ("observables", "split", put("training"), "split is train, valid or test"),
        ("observables", "split", put("train", row=-1), "bid_time of train and valid < that of test"),
        ("observables", "split", put("train", row=-1), "bid_time of train < that of valid"),
        ("observables", "split", put("valid", row=0), "bid_time of train < that of valid"),
        ("observables", "split", put("train", row=-1), "labels of train and valid end before test begins"),
        ("observables", "profile_time", put(1_704_067_200), "profile_time is in microseconds"),
        ("content", "sample_id", put(999), "each sample has one row of content"),
    ],
)
def test_each_kind_of_violation_is_found(made, tmp_path, name, column, change, rule):
    audit = audit_times(*folders(changed(made, tmp_path / "x", name, column, change)), CFG)
    assert rule in [check.rule for check in audit.failures]
    with pytest.raises(DataError, match="times are out of order"):
        audit.require_clean()
    audit.write(tmp_path)
    assert "OUT OF ORDER" in (tmp_path / "times.html").read_text()


def test_content_outside_its_window_is_found(made, tmp_path):
    start_us = bid_us(made) + 1_000_000
    for number, (times_us, rule) in enumerate(
        [
            ([start_us - 1, start_us], "content_time begins with content_start"),
            ([start_us + 1], "content_time begins with content_start"),
            ([start_us, start_us + DAY_US], "content_time < content_end"),
        ]
    ):
        out = changed(made, tmp_path / str(number), "content", "content_time", put(times_us))
        audit = audit_times(*folders(out), CFG)
        assert [(check.rule, check.num_failed) for check in audit.failures] == [(rule, 1)]


def reverse(values):
    values.reverse()


def swap(values):
    values[3], values[ROW] = values[ROW], values[3]


def test_columns_of_the_samples_that_did_not_stay_in_their_rows_are_found(made, tmp_path):
    for number, (column, change) in enumerate([("user_id", reverse), ("surface", swap), ("lt7", swap)]):
        out = changed(made, tmp_path / str(number), "observables", column, change)
        audit = audit_times(*folders(out), CFG, made / "samples")
        assert [check.rule for check in audit.failures] == [
            f"columns of the samples are those of samples.parquet ({column})"
        ]
    few = pq.read_table(made / "observables" / "observables.parquet").slice(1)
    (tmp_path / "few").mkdir()
    pq.write_table(few, tmp_path / "few" / "observables.parquet")
    audit = audit_times(tmp_path / "few", None, CFG, made / "samples")
    assert audit.failures[0].num_failed == len(few)
    assert "samples.parquet (sample_id, user_id, bid_time" in audit.failures[0].rule


def test_content_of_another_sample_is_found(made, tmp_path):
    audit = audit_times(*folders(changed(made, tmp_path / "x", "content", "sample_id", swap)), CFG)
    failed = {check.rule: check.num_failed for check in audit.failures}
    assert failed["content_time begins with content_start"] == 2


def test_features_of_another_user_are_found(made, tmp_path):
    """Somebody who was active until just before the bid is nobody who lapsed."""
    row = last_with(made, "observables", "aggregated_time")
    time_us = bid_us(made, row) + 1_000_000 - 2 * DAY_US
    for late_us in (0, 1):
        change = put(time_us + late_us, row)
        out = changed(made, tmp_path / str(late_us), "observables", "aggregated_time", change)
        audit = audit_times(*folders(out), CFG)
        expected = ["aggregated_time <= content_start - 2 x 24 h"] * late_us
        assert [check.rule for check in audit.failures] == expected


def test_the_step_looks_at_times_before_labels(made, tmp_path):
    cfg = resolve("tiny")
    steps.audit_times(made / "samples", *folders(made), tmp_path / "good", cfg)
    page = (tmp_path / "good" / "times.html").read_text()
    assert "What single columns tell" in page
    assert {path.name for path in (tmp_path / "good").iterdir()} == {
        "times.html",
        "times.json",
        "labels.json",
    }
    out = changed(made, tmp_path / "x", "observables", "user_id", reverse)
    with pytest.raises(DataError, match=r"samples\.parquet \(user_id\)"):
        steps.audit_times(made / "samples", *folders(out), tmp_path / "bad", cfg)
    assert "What single columns tell" not in (tmp_path / "bad" / "times.html").read_text()


def test_a_column_of_content_among_the_observables_is_found(made, tmp_path):
    table = pq.read_table(made / "observables" / "observables.parquet")
    pq.write_table(
        table.append_column("content_item", table["history_item"]), tmp_path / "observables.parquet"
    )
    audit = audit_times(tmp_path, None, CFG)
    assert [check.num_failed for check in audit.failures] == [audit.num_rows]
    assert "content_item" in audit.failures[0].rule


def test_overlap_passes_only_where_it_is_asked_for(tmp_path):
    cfg = SamplesConfig(content_days=2, overlap=True, embargo=False)
    made = training_set(tmp_path, cfg)
    assert audit_times(*folders(made), cfg).passed
    strict = audit_times(*folders(made), SamplesConfig(content_days=2, embargo=False))
    assert [check.rule for check in strict.failures] == ["content_end <= label_start"]
    assert strict.failures[0].num_failed == strict.num_rows
    # And samples without overlap are not what an overlap run wants.
    plain = training_set(tmp_path / "plain", SamplesConfig(content_days=2, embargo=False))
    assert not audit_times(*folders(plain), cfg).passed


def test_nothing_can_be_proven_without_the_times(made, tmp_path):
    table = pq.read_table(made / "observables" / "observables.parquet")
    pq.write_table(table.drop_columns(["history_time"]), tmp_path / "observables.parquet")
    with pytest.raises(DataError, match="lacks columns history_time, without which"):
        audit_times(tmp_path, None, CFG)
    with pytest.raises(DataError, match=r"cannot read .*absent/observables\.parquet"):
        audit_times(tmp_path / "absent", None, CFG)


def test_a_row_without_history_is_not_asked(made, tmp_path):
    out = made
    for number, name in enumerate((*PARALLEL_LISTS["interaction_aggregates"], *PARALLEL_LISTS["ad_context"])):
        out = changed(out, tmp_path / str(number), "observables", name, put([] if "return" in name else None))
    audit = audit_times(*folders(out), CFG)
    assert audit.passed
    asked = {check.rule: check.num_rows for check in audit.checks}
    full = {c.rule: c.num_rows for c in audit_times(*folders(made), CFG).checks}
    assert asked["history_time <= bid_time"] == full["history_time <= bid_time"] - 1
    assert np.isclose(asked["bid_time < content_start"], full["bid_time < content_start"])


@pytest.mark.parametrize(
    ("column", "change", "rule"),
    [
        ("history_time", lambda times: [None] * len(times), "have a history_time for each value"),
        ("history_time", lambda times: None, "have a history_time for each value"),
        ("history_time", lambda times: times[1:], "have a history_time for each value"),
        ("return_time", lambda times: times[1:], "have a return_time for each value"),
        ("aggregated_time", lambda time: None, "aggregated_time is there where interaction_aggregates is"),
        ("profile_time", lambda time: None, "profile_time is there where user_profile is"),
    ],
)
def test_a_value_without_a_time_proves_nothing(made, tmp_path, column, change, rule):
    """Content put into the history with times of null would pass every comparison of times."""
    row = last_with(made, "observables", column)

    def untimed(values):
        values[row] = change(values[row])

    audit = audit_times(*folders(changed(made, tmp_path / "x", "observables", column, untimed)), CFG)
    assert [check.num_failed for check in audit.failures] == [1]
    assert audit.failures[0].rule.endswith(rule)


def test_a_column_that_the_contracts_do_not_know_is_found(made, tmp_path):
    table = pq.read_table(made / "observables" / "observables.parquet")
    content = pq.read_table(made / "content" / "content.parquet")
    renamed = table.append_column("extra_item", content["content_item"])
    pq.write_table(renamed, tmp_path / "observables.parquet")
    audit = audit_times(tmp_path, None, CFG)
    assert [check.rule for check in audit.failures] == [
        "no column besides those of the samples and of ocarm_student_v1 (extra_item)"
    ]
    text = table.append_column("when_time", pa.array(["noon"] * len(table)))
    pq.write_table(text, tmp_path / "observables.parquet")
    with pytest.raises(DataError, match=r"column when_time: string is no time"):
        audit_times(tmp_path, None, CFG)
