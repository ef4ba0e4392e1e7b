"""`feedworks features push` and `freshness`: files, replays, and what they say when they cannot."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from feedworks.cli import cli
from feedworks.contracts.features import LIVE_SERVICE, LIVE_STREAM
from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.features.live_log import arrivals, synthetic_log
from feedworks.features.local_redis import running_redis


@pytest.fixture(scope="module")
def address():
    with running_redis() as server:
        yield f"packed+{server.url}"


def run(*words, raises=None):
    result = CliRunner().invoke(cli, ["features", *map(str, words)])
    assert isinstance(result.exception, raises) if raises else result.exception is None, result.output
    return result


def fresh_log(path: Path, num_events: int = 50) -> pa.Table:
    """A log of now, with a row that breaks the contract."""
    now_us = int(datetime.now(UTC).timestamp()) * 1_000_000
    rows = arrivals(synthetic_log(num_events, num_rooms=9), 1e6, now_us, late_share=0, repeated_share=0).rows
    shares = rows["watch_share_5m"].to_pylist()
    shares[7] = 2.0
    rows = rows.set_column(
        rows.column_names.index("watch_share_5m"), "watch_share_5m", pa.array(shares, "f4")
    )
    pq.write_table(rows, path)
    return rows


def test_a_file_is_pushed_and_its_bad_row_named(address, tmp_path):
    rows = fresh_log(tmp_path / "log.parquet")
    result = run("push", tmp_path / "log.parquet", "--to", address, raises=SystemExit)
    assert result.exit_code == 1
    assert f"rejected row 7 (room_id={rows['room_id'][7].as_py()}): column watch_share_5m" in result.stderr
    assert "live_stream: 49 rows pushed, 1 rejected" in result.stdout
    read = run("get", LIVE_SERVICE, rows["room_id"][0].as_py(), "--source", address).stdout
    assert '"status": "fresh"' in read


def test_a_replay_says_what_it_lost(address):
    said = run("push", "--rate", 200, "--seconds", 1, "--to", address).stdout
    assert "200 pushes in 1." in said
    assert "lost 0, went back in time 0, wrong 0" in said


def test_what_cannot_be_pushed(address, tmp_path):
    (tmp_path / "text").write_bytes(b"no parquet")
    found = run("push", tmp_path / "text", "--to", address, raises=DataError)
    assert "expected a parquet file of live_stream" in str(found.exception)
    run("push", "--to", address, raises=DataError)  # the synthetic log is for replays
    run("push", tmp_path / "none.parquet", "--rate", 5, "--to", address, raises=DataError)
    fresh_log(tmp_path / "log.parquet")
    run("push", tmp_path / "log.parquet", "--view", "onboarding", "--to", address, raises=DataError)
    run("push", tmp_path / "log.parquet", "--to", "http://x", raises=ConfigError)
    pq.write_table(pa.table({"room_id": [1]}), tmp_path / "short.parquet")
    run("push", tmp_path / "short.parquet", "--rate", 5, "--to", address, raises=DataError)
    pq.write_table(pa.table({"room_id": pa.array([], pa.int64())}), tmp_path / "empty.parquet")
    found = run("push", tmp_path / "empty.parquet", "--to", address, raises=DataError)
    assert str(found.exception).startswith("column event_time, author_id, ")


def test_the_freshness_report(address, tmp_path):
    rows = fresh_log(tmp_path / f"{LIVE_STREAM.name}.parquet")
    out = tmp_path / "freshness.html"
    said = run("freshness", LIVE_SERVICE, "--tables", tmp_path, "--from", address, "--out", out).stdout
    rooms = len(rows["room_id"].unique())
    assert f"live_stream: {rooms} entities, 0.0 % stale, 0.0 % missing" in said
    assert "Freshness of live_stream_v1" in out.read_text()
    later = ["--at", "2100-01-01", "--tables", tmp_path, "--from", address, "--out", out]
    assert "100.0 % stale, 0.0 % missing" in run("freshness", LIVE_SERVICE, *later).stdout
    run("freshness", "ocarm_teacher_v1", "--out", out, raises=ModelError)
    run(
        "freshness",
        LIVE_SERVICE,
        "--tables",
        tmp_path / "none",
        "--from",
        address,
        "--out",
        out,
        raises=DataError,
    )
