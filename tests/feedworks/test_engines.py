"""A pass over row groups: cut into tasks, here or on Ray with the same result; clusters that are absent."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pytest

from feedworks import engines
from feedworks.engines import PrepareConfig, over_row_groups
from feedworks.errors import ConfigError


def numbers(row_groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
    for group in row_groups:
        yield pa.RecordBatch.from_pydict({"group": [group]})


def test_tasks_are_neighbouring_row_groups_of_bounded_size(monkeypatch):
    monkeypatch.setattr(engines, "TASK_ROWS", 10)
    assert engines._tasks([4, 6, 1, 0, 30, 5, 5, 5]) == [[0, 1], [2, 3], [4], [5, 6], [7]]
    assert engines._tasks([100]) == [[0]]


def test_the_local_engine_passes_over_all_row_groups_in_order():
    found = over_row_groups(numbers, [1] * 5, PrepareConfig())
    assert [batch["group"][0].as_py() for batch in found] == [0, 1, 2, 3, 4]


def on_ray(address: str = "local") -> None:
    list(over_row_groups(numbers, [1] * 3, PrepareConfig(engine="ray", address=address)))


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ray is not installed; pip install 'feedworks\[ray\]', or"):
        on_ray()


@pytest.mark.parametrize("address", ["", "head", "head:x", ":1"])
def test_an_address_that_is_none_is_refused(address):
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"expected local, auto or host:port"):
        on_ray(address)


def test_nobody_at_the_address(monkeypatch):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            ConfigError, match=f"prepare.address={address}: no Ray cluster answers there .*refused"
        ):
            on_ray(address)


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(engines, "ANSWER_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ConfigError, match=r"no Ray cluster answers there \(no answer within 2 s\)"):
            on_ray(address)
        assert time.monotonic() - started < 30


# In a process of its own: Ray leaves threads and sockets behind, of which pytest would warn.
BOTH = """
import sys
from dataclasses import replace
from pathlib import Path
import pyarrow.parquet as pq
import ray
from feedworks import engines
from feedworks.contracts.files import table_writer
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.tables import INTERACTIONS
from feedworks.errors import DataError
from feedworks.recochain import steps
from feedworks.recochain.config import tiny

work = Path(sys.argv[1])
data = write_synthetic(work / "data", num_users=400, num_items=60, mean_events=20, seed=5).folder
events = pq.read_table(INTERACTIONS.path(data))
pq.write_table(events, INTERACTIONS.path(data), row_group_size=300)
engines.TASK_ROWS = 900
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
on_ray = engines.PrepareConfig(engine="ray")
for engine in (engines.PrepareConfig(), on_ray):
    steps.prepare(data, work / engine.engine, replace(tiny(), prepare=engine))
order = [*range(500), 501, 500, *range(502, len(events))]
pq.write_table(events.take(order), INTERACTIONS.path(data), row_group_size=300)
try:
    steps.prepare(data, work / "ray", replace(tiny(), prepare=on_ray))
except DataError as error:
    print("DataError", error)
pq.write_table(events, INTERACTIONS.path(data), row_group_size=300)
with pq.ParquetFile(INTERACTIONS.path(data)) as file:
    column = file.metadata.row_group(7).column(1)
    place = column.dictionary_page_offset or column.data_page_offset
content = bytearray(INTERACTIONS.path(data).read_bytes())
content[place : place + 40] = b"\\xff" * 40
INTERACTIONS.path(data).write_bytes(bytes(content))
try:
    steps.prepare(data, work / "ray", replace(tiny(), prepare=on_ray))
except DataError as error:
    print("DataError", error)
"""


@pytest.mark.slow
def test_ray_prepares_the_same_bytes_and_tells_the_same_errors(tmp_path):
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", BOTH, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / engine).iterdir()}
        for engine in ("local", "ray")
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5
    # Ray prints of what failed in a worker, too.
    unsorted, damaged = [line for line in done.stdout.splitlines() if line.startswith("DataError ")]
    assert unsorted.startswith("DataError table interactions: row 501 stands out of the order")
    assert damaged.startswith("DataError table interactions: cannot read ")
