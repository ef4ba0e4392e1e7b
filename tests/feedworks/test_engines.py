"""A pass over row groups: cut into tasks, here or on Ray with the same result; clusters that are absent."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks import engines
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.tables import INTERACTIONS
from feedworks.engines import PrepareConfig, over_row_groups
from feedworks.errors import ConfigError
from feedworks.recochain import steps
from feedworks.recochain.config import resolve, tiny


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


@pytest.mark.parametrize("address", ["", "head", "10.0.0.1:6379", "ray://feedworks-head-svc:10001"])
def test_a_cluster_is_not_reached_from_outside(address):
    with pytest.raises(ConfigError, match=r"expected local or auto; .* by a RayJob \(manifests/README.md\)"):
        PrepareConfig(engine="ray", address=address)
    with pytest.raises(ConfigError, match=r"prepare.address=.*: expected local or auto"):
        resolve("tiny", ["prepare.engine=ray", f"prepare.address={address}"])


def test_a_client_in_the_environment_is_told(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigError, match=r"at RAY_ADDRESS=ray://head:10001 \(not a machine of it, "):
        on_ray("auto")


def test_nobody_at_the_address(monkeypatch):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at RAY_ADDRESS={address} .*refused"):
            on_ray("auto")


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(engines, "ANSWER_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ConfigError, match=r"no Ray cluster answers .* \(no answer within 2 s\)"):
            on_ray("auto")
        assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_machine_without_a_cluster_is_told(monkeypatch, tmp_path):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no Ray cluster answers on this machine \(ConnectionError"):
        on_ray("auto")


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
    assert len(contents[0]) == 6
    # Ray prints of what failed in a worker, too.
    unsorted, damaged = [line for line in done.stdout.splitlines() if line.startswith("DataError ")]
    assert unsorted.startswith("DataError table interactions: row 501 stands out of the order")
    assert damaged.startswith("DataError table interactions: cannot read ")


# The driver of a job, on the head of a cluster of two machines: where tasks ran, and the same bytes.
DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path
import pyarrow as pa
from feedworks import engines
from feedworks.recochain import steps
from feedworks.recochain.config import tiny

def where(row_groups):
    import ray, time
    time.sleep(0.2)
    yield pa.RecordBatch.from_pydict({"node": [ray.get_runtime_context().get_node_id()] * len(row_groups)})

engines.TASK_ROWS = 900
auto = engines.PrepareConfig(engine="ray", address="auto")
nodes = [batch["node"][0].as_py() for batch in engines.over_row_groups(where, [900] * 16, auto)]
print("nodes", len(nodes), len(set(nodes)))
steps.prepare(Path(sys.argv[1]), Path(sys.argv[2]), replace(tiny(), prepare=auto))
"""


@pytest.fixture
def two_nodes():
    """The environment of a job on a cluster of two machines with a processor each, both of them here."""
    pytest.importorskip("ray")
    ray = str(Path(sys.executable).with_name("ray"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = {
        "head": ["--head", f"--port={port}", "--include-dashboard=false"],
        "worker": [f"--address=127.0.0.1:{port}"],
    }
    common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=100000000", "--block"]
    # A machine may hold a token of another cluster. The folder's name is short, as names of sockets are.
    with tempfile.TemporaryDirectory(prefix="ray") as folder, ExitStack() as stack:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        quick = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        env = os.environ | token | quick | {"RAY_TMPDIR": folder}
        for name, start in words.items():
            log = stack.enter_context(Path(folder, f"{name}.log").open("w"))
            command = [ray, "start", *start, *common]
            node = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(node.wait)
            stack.callback(node.terminate)
            _wait_for(Path(log.name), "Ray runtime started", node)
        yield env | {"RAY_ADDRESS": f"127.0.0.1:{port}"}


def _wait_for(log: Path, words: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


@pytest.mark.slow
def test_two_machines_prepare_the_same_bytes(two_nodes, tmp_path):
    data = write_synthetic(tmp_path / "data", num_users=400, num_items=60, mean_events=20, seed=5).folder
    events = pq.read_table(INTERACTIONS.path(data))
    pq.write_table(events, INTERACTIONS.path(data), row_group_size=300)
    steps.prepare(data, tmp_path / "local", tiny())
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(data), str(tmp_path / "ray")],
        env=two_nodes,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "nodes 16 2" in done.stdout
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("local", "ray")
    ]
    assert contents[0] == contents[1]
