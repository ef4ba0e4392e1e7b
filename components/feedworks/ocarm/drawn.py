"""OCARM (arXiv 2604.25839): drawn rows of the student's views and a student with random weights, for benches.

Rows are as large as they get: every list has its full length. They say nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from feedworks.configuration import to_json
from feedworks.contracts.features import FEATURE_TABLES, STUDENT_SERVICE
from feedworks.contracts.retention import OBSERVABLES_FILE
from feedworks.contracts.tables import Column
from feedworks.features.schema import ServiceSchema
from feedworks.ocarm.config import Architecture, Sizes, resolve
from feedworks.ocarm.data import ItemTable
from feedworks.ocarm.model import Student, filled
from feedworks.ocarm.packaging import write_package
from feedworks.storage import atomic_folder
from feedworks.training.checkpoint import save_model

Tables = dict[str, pa.Table]

SCHEMA = ServiceSchema.of(STUDENT_SERVICE)
CONFIG = resolve("small")
NUM_ITEMS, VECTOR_WIDTH, NUM_CATEGORIES = 5000, 32, 64
BID_US = 1_750_000_000_000_000
ROW_US = BID_US - 3_600_000_000
PAST_US = 20 * 86_400_000_000
LIST_LENGTHS = {
    "interaction_aggregates": CONFIG.samples.max_history,
    "ad_context": CONFIG.samples.max_returns,
}


def draw_tables(num_users: int, seed: int) -> Tables:
    """A row for each of users 0, 1, ... in each view of the student."""
    rng = np.random.default_rng(seed)
    drawn = {table.name: table for table in FEATURE_TABLES if table.name in {v.name for v in SCHEMA.views}}
    return {
        name: pa.table(
            {table.entity: pa.array(np.arange(num_users))}
            | {c.name: _column(c, num_users, LIST_LENGTHS.get(name, 0), rng) for c in table.features}
        )
        for name, table in drawn.items()
    }


def write_random_package(folder: Path, tables: Tables, seed: int) -> Path:
    """Write a packaged student of preset `small` with random weights; its parts lie beside it."""
    rng = np.random.default_rng(seed)
    items = ItemTable(
        np.arange(NUM_ITEMS),
        rng.integers(NUM_CATEGORIES, size=NUM_ITEMS),
        rng.standard_normal((NUM_ITEMS, VECTOR_WIDTH)).astype(np.float32),
    )
    parts = folder.with_name(f"{folder.name}-parts")
    observables, student = parts / "observables", parts / "student"
    observables.mkdir(parents=True)
    items.write(observables)
    num_users = len(tables[SCHEMA.views[0].name])
    columns = {f.name: tables[view.name][f.name] for view in SCHEMA.views for f in view.features}
    columns |= {f"lt{days}": rng.random(num_users) for days in CONFIG.samples.horizons}
    pq.write_table(pa.table({**columns, "split": ["train"] * num_users}), observables / OBSERVABLES_FILE)
    sizes = Sizes(num_items=NUM_ITEMS + 1, vector_width=VECTOR_WIDTH)
    torch.manual_seed(seed)
    model = Student(Architecture(model=CONFIG.model, samples=CONFIG.samples, sizes=sizes))
    filled(model, items)
    save_model(student, model, to_json(model.architecture))
    SCHEMA.write(student)
    with atomic_folder(folder) as new:
        write_package(new, student, observables, CONFIG, {})
    return folder


def _column(column: Column, rows: int, length: int, rng: np.random.Generator) -> pa.Array:
    """Values in range; times lie in the days before the rows."""
    count = rows * length if column.is_vector else rows
    type_ = column.type.value_type if column.is_vector else column.type
    values: npt.NDArray[Any]
    if column.name.endswith("_time"):
        values = ROW_US - rng.integers(PAST_US, size=count)
    elif column.name.endswith("_item"):
        values = rng.integers(NUM_ITEMS, size=count)
    elif pa.types.is_integer(type_):
        values = rng.integers(int(column.maximum or 15) + 1, size=count)
    else:
        values = rng.random(count)
    flat = pa.array(values).cast(type_)
    if not column.is_vector:
        return flat
    return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * length, flat)
