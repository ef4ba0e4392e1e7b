"""RecoChain (arXiv 2604.25787): more events than memory holds, `python -m feedworks.recochain.bench prepare`.

Validation and preparation run in processes of their own under a hard limit of memory, and so does what both
did before: the whole table in memory. Shapes: E events, U users.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa

from feedworks.contracts.files import table_writer, write_table
from feedworks.contracts.tables import EVENT_TIME, INTERACTIONS, ITEMS, USERS
from feedworks.metrics.latency import device_label, print_rows
from feedworks.metrics.memory import run_limited
from feedworks.progress import Progress

EVENT_BYTES = 24  # user, item and time in memory
WIDTH = 32
BLOCK = 1_000_000
START_US, MEAN_GAP_US = 1_704_067_200_000_000, 10_000_000_000
# What validation and preparation did before they went by row groups, up to the first copy.
WHOLE = (
    "import sys; from pathlib import Path; from feedworks.contracts.files import read_table; "
    "from feedworks.contracts.tables import INTERACTIONS; read_table(INTERACTIONS, Path(sys.argv[1]))"
)


@click.command()
@click.option("--events", type=int, default=220_000_000, show_default=True, help="24 bytes each in memory")
@click.option("--per-user", type=int, default=200, show_default=True, help="mean events of a user")
@click.option("--items", type=int, default=100_000, show_default=True)
@click.option(
    "--limit-mb", type=int, default=512, show_default=True, help="of memory, by a cgroup; wants root"
)
@click.option("--preset", default="paper", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def prepare(events: int, per_user: int, items: int, limit_mb: int, preset: str, seed: int) -> None:
    """Validate and prepare more events than memory holds, and try to read them whole."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        write_events(data, events, per_user, items, seed)
        for row in limited_rows(data, Path(scratch) / "out", events, limit_mb, preset):
            print_rows([row])
            if row["op"] != "read whole" and row["returncode"]:
                raise click.ClickException(f"{row['op']} ended with code {row['returncode']}")


def limited_rows(data: Path, out: Path, events: int, limit_mb: int, preset: str) -> Iterator[dict[str, Any]]:
    """One row for validation, preparation and the attempt to read the table whole.

    Its fields: op, events, table_bytes (in memory), file_bytes, limit_bytes, seconds, peak_bytes (held and in
    no file), killed, returncode, device.
    """
    python = sys.executable
    ways = {
        "validate": [python, "-m", "feedworks", "data", "validate", str(data)],
        "prepare": [
            *(python, "-m", "feedworks.launch", f"--preset={preset}", "recochain", "prepare"),
            *(str(data), str(out)),
        ],
        "read whole": [python, "-c", WHOLE, str(data)],
    }
    for op, command in ways.items():
        held = run_limited(command, limit_mb << 20)
        yield {
            "op": op,
            "events": events,
            "table_bytes": events * EVENT_BYTES,
            "file_bytes": INTERACTIONS.path(data).stat().st_size,
            "limit_bytes": limit_mb << 20,
            "seconds": round(held.seconds, 1),
            "peak_bytes": held.peak_bytes,
            "killed": held.killed,
            "returncode": held.returncode,
            "device": device_label(),
        }


def write_events(folder: Path, num_events: int, per_user: int, num_items: int, seed: int) -> None:
    """A data folder of random events, a block at a time: lengths even in +-50 %, few items often."""
    rng = np.random.default_rng(seed)
    num_users = max(2, num_events // per_user)
    with table_writer(INTERACTIONS, folder) as write, Progress("users written", total=num_users) as shown:
        while shown.count < num_users:
            users = min(max(1, BLOCK // per_user), num_users - shown.count)
            write(_events(np.arange(users) + shown.count, per_user, num_items, rng))
            shown.advance(users)
    vector = pa.array(rng.standard_normal(num_items * WIDTH, np.float32))
    items = {
        "item_id": np.arange(num_items),
        "vector": pa.FixedSizeListArray.from_arrays(vector, WIDTH),
        "text": [f"word{item % 100}" for item in range(num_items)],
    }
    write_table(ITEMS, pa.table(items), folder)
    segments = [f"segment_{user % 4}" for user in range(num_users)]
    write_table(USERS, pa.table({"user_id": np.arange(num_users), "segment": segments}), folder)


def _events(user_U: Any, per_user: int, num_items: int, rng: np.random.Generator) -> pa.Table:
    length_U = rng.integers(per_user // 2, per_user + per_user // 2 + 1, len(user_U))
    total = int(length_U.sum())
    elapsed_E = np.cumsum(rng.integers(1, 2 * MEAN_GAP_US, total))
    first_E = np.repeat(np.cumsum(length_U) - length_U, length_U)
    return pa.table(
        {
            "user_id": np.repeat(user_U, length_U),
            "item_id": (num_items * rng.random(total) ** 2).astype(np.int64),
            "event_time": pa.array(START_US + elapsed_E - elapsed_E[first_E]).cast(EVENT_TIME),
        }
    )
