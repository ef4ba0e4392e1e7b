"""OCARM (arXiv 2604.25839): the service under load, then without its store.

    python -m feedworks.ocarm.serve_bench

The service runs in a process of its own with a student of preset `small` whose weights are random, and reads
full rows of many users from a Redis on loopback. After the load the store is killed (SIGKILL) in mid-load,
comes back empty and is filled again. The load generator does not read answers: beside it one probe asks every
20 ms and does.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import redis

from feedworks.features.local_redis import LocalRedis, running_redis
from feedworks.features.packed_redis import write_rows
from feedworks.features.reading import PROJECT, layout_of
from feedworks.metrics.latency import device_label, print_rows
from feedworks.ocarm.drawn import BID_US, ROW_US, SCHEMA, Tables, draw_tables, write_random_package
from feedworks.serving.load import load_rows, run_load
from feedworks.serving.server import post_json, running_server

TARGET = "feedworks.ocarm.service:OcarmService"
OURS = "feedworks"
NUM_BODIES = 1024
PROBE_EVERY_S = 0.02
WARMUP_S = 1.0


class Probed(NamedTuple):
    """One answer to the probe: when it was asked, how long it took, and what was wrong."""

    time_s: float
    latency_s: float
    failed: bool
    reasons: tuple[str, ...]


@click.command()
@click.option("--clients", type=int, default=16, show_default=True)
@click.option("--seconds", type=float, default=60.0, show_default=True, help="of steady load")
@click.option("--outage", type=float, default=15.0, show_default=True, help="seconds of load around the kill")
@click.option("--users", type=int, default=20_000, show_default=True, help="in the store")
@click.option("--batch", type=int, default=1, show_default=True, help="users in a request")
@click.option("--deadline-ms", type=float, default=50.0, show_default=True, help="that the store has")
@click.option("--workers", type=int, default=1, show_default=True, help="processes of the server")
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    clients: int,
    seconds: float,
    outage: float,
    users: int,
    batch: int,
    deadline_ms: float,
    workers: int,
    seed: int,
) -> None:
    """POST /predict under load from a Redis; then the Redis is killed and comes back. Closed loop."""
    tables = draw_tables(users, seed)
    bodies = request_bodies(users, batch, seed)
    device = f"{device_label()}, {workers} workers x 1 threads"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(running_redis())
        start_s = time.perf_counter()
        rows = fill(store, tables)
        rows_per_s = round(rows / (time.perf_counter() - start_s))
        environment = {
            "FEEDWORKS_MODEL_DIR": str(write_random_package(folder / "model", tables, seed)),
            "FEEDWORKS_WORKERS": str(workers),
            "FEEDWORKS_FEATURE_STORE": f"packed+{store.url}",
            "FEEDWORKS_FEATURE_DEADLINE_MS": str(deadline_ms),
            "OMP_NUM_THREADS": "1",
        }
        url = f"{stack.enter_context(running_server(TARGET, environment, folder / 'log'))}/predict"
        print_rows([{"op": "fill_store", "rows": rows, "rows_per_s": rows_per_s, "device": device}])
        with probing(url, json.loads(bodies[0])) as probed:
            load = run_load(url, bodies, clients=clients, duration_s=seconds, warmup_s=WARMUP_S)
        steady = load_rows("serve_predict", device, {OURS: load}, OURS)[0]
        steady |= {"answers_read": len(probed), "degraded": _counts(probed)}
        print_rows([steady | {"shape": {"clients": clients, "users": batch}}])
        row = kill_in_mid_load(url, bodies, store, tables, clients=clients, seconds=outage)
        print_rows([row | {"device": device, "shape": {"clients": clients, "users": batch}}])


def request_bodies(users: int, batch: int, seed: int) -> list[bytes]:
    """Requests for users drawn at random, all of whom the store knows."""
    rng = np.random.default_rng(seed)
    return [
        json.dumps(
            {
                "users": [
                    {"user_id": int(user), "surface": int(user) % 16, "bid_time": BID_US}
                    for user in rng.integers(users, size=batch)
                ]
            }
        ).encode()
        for _ in range(NUM_BODIES)
    ]


def fill(store: LocalRedis, tables: Tables) -> int:
    """Write the rows of all users as the packed store does; return how many."""
    written = 0
    with redis.Redis.from_url(store.url) as client:
        for view in SCHEMA.views:
            layout, table = layout_of(view), tables[view.name]
            packed = layout.encode_table(table, np.full(len(table), ROW_US))
            written += write_rows(client, PROJECT, layout, table[view.entity].to_pylist(), packed)
    return written


def kill_in_mid_load(
    url: str, bodies: list[bytes], store: LocalRedis, tables: Tables, *, clients: int, seconds: float
) -> dict[str, Any]:
    """Kill the store after a third of the load, start it again after two, and fill it.

    Returns:
        A row: requests and errors of the load; of the probe's answers while the store was gone how many were
        degraded, the longest wait, the reasons; and seconds from the start of the new store, and from its
        being filled, until the first answer with all features.
    """
    marks: dict[str, float] = {}

    def happen() -> None:
        time.sleep(seconds / 3)
        marks["killed"] = time.perf_counter()
        store.stop()
        time.sleep(seconds / 3)
        marks["started"] = time.perf_counter()
        store.start()
        fill(store, tables)
        marks["filled"] = time.perf_counter()

    with probing(url, json.loads(bodies[0])) as probed, _in_thread(happen):
        load = run_load(url, bodies, clients=clients, duration_s=seconds)
    gone = [each for each in probed if marks["killed"] <= each.time_s < marks["started"]]
    whole = [each for each in probed if not each.reasons and not each.failed]
    back_s = min(
        (each.time_s + each.latency_s for each in whole if each.time_s >= marks["started"]),
        default=float("inf"),
    )
    row = load_rows("serve_predict_outage", "", {OURS: load}, OURS)[0]
    return row | {
        "errors": row["errors"] + sum(each.failed for each in probed),
        "gone_s": round(marks["started"] - marks["killed"], 3),
        "gone_answers": len(gone),
        "gone_degraded": sum(bool(each.reasons) for each in gone),
        "gone_longest_s": round(max((each.latency_s for each in gone), default=0.0), 4),
        "gone_reasons": _counts(gone),
        "refill_s": round(marks["filled"] - marks["started"], 3),
        "back_after_start_s": round(back_s - marks["started"], 3),
        "back_after_refill_s": round(back_s - marks["filled"], 3),
    }


@contextmanager
def probing(url: str, body: Mapping[str, Any]) -> Iterator[list[Probed]]:
    """Ask now and then, beside whatever the block does; the list fills meanwhile."""
    found: list[Probed] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(PROBE_EVERY_S):
            start_s = time.perf_counter()
            try:
                reasons = tuple(post_json(url, body)["users"][0]["reasons"])
                failed = False
            except (OSError, ValueError, KeyError):
                reasons, failed = (), True
            found.append(Probed(start_s, time.perf_counter() - start_s, failed, reasons))

    with _in_thread(ask):
        try:
            yield found
        finally:
            ended.set()


@contextmanager
def _in_thread(work: Any) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _counts(probed: list[Probed]) -> dict[str, int]:
    reasons = [reason for each in probed for reason in each.reasons]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


if __name__ == "__main__":
    main()
