"""A packaged student with random weights, a feature source in memory, and requests for both."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from feedworks.configuration import to_json
from feedworks.contracts.features import STUDENT_ITEM_SERVICE, STUDENT_SERVICE, TEACHER_SERVICE
from feedworks.contracts.retention import SAMPLES
from feedworks.features.reading import FRESH, MISSING, STALE, OnlineRows
from feedworks.features.schema import FeatureSchema, ServiceSchema
from feedworks.ocarm.config import resolve
from feedworks.ocarm.model import Student, Teacher, filled
from feedworks.ocarm.packaging import write_package
from feedworks.storage import atomic_folder
from feedworks.training.checkpoint import save_model

from . import toy

SCHEMA = ServiceSchema.of(STUDENT_SERVICE)
ITEM_SCHEMA = ServiceSchema.of(STUDENT_ITEM_SERVICE)
WITH_ITEM = toy.settings("samples.landing_item=true")
METRICS = {
    "test/student/lt1/auc": 0.7,
    "test/student/lt1/auc/ci_low": 0.6,
    "test/student/lt1/auc/ci_high": 0.8,
}
NUM_ROWS = 120


def write_observables(
    folder: Path, *, num_rows: int = NUM_ROWS, drop: Sequence[str] = (), schema: ServiceSchema = SCHEMA
) -> Path:
    """What the student was trained on; `drop` names views that no row has."""
    folder.mkdir(parents=True, exist_ok=True)
    items = toy.catalogue()
    items.write(folder)
    schema.write(folder)
    columns = toy.columns(num_rows, items)
    rng = np.random.default_rng(1)
    columns |= {"content_end": columns["label_start"], "lt1": rng.integers(2, size=num_rows)}
    columns |= {"lt7": rng.integers(8, size=num_rows) / 7, "lt30": [None] * num_rows}
    columns |= {"split": ["train"] * (num_rows - 20) + ["test"] * 20, "profile_time": [0] * num_rows}
    columns |= {"item_category": [0] * num_rows, "item_author_id": [0] * num_rows}
    missing = {feature.name for view in schema.views if view.name in drop for feature in view.features}
    fields = [(column.name, column.type) for column in SAMPLES.columns]
    fields += [(feature.name, feature.arrow_type) for view in schema.views for feature in view.features]
    table = {
        name: _array([None] * num_rows if name in missing else columns[name], type_) for name, type_ in fields
    }
    pq.write_table(pa.table(table), folder / "observables.parquet")
    return folder


def write_student(folder: Path, *, seed: int = 0, schema: ServiceSchema = SCHEMA) -> Path:
    """A model folder as stage 2 leaves it."""
    return _write_model(folder, Student, seed, schema)


def write_teacher(folder: Path, *, seed: int = 1) -> Path:
    """A model folder as stage 1 leaves it."""
    return _write_model(folder, Teacher, seed, ServiceSchema.of(TEACHER_SERVICE))


def write_model_package(
    folder: Path, *, seed: int = 0, drop: Sequence[str] = (), schema: ServiceSchema = SCHEMA
) -> Path:
    """The packaged student; its parts lie beside it."""
    parts = folder.parent / f"{folder.name}-parts"
    student = write_student(parts / "student", seed=seed, schema=schema)
    observables = write_observables(parts / "observables", drop=drop, schema=schema)
    with atomic_folder(folder) as new:
        write_package(new, student, observables, resolve("tiny"), METRICS)
    return folder


class MemorySource:
    """Features in a dictionary, `items` those of items; slow, gone or wrong as it is told."""

    def __init__(
        self,
        rows: Mapping[int, Mapping[str, Mapping[str, Any]]],
        time_us: int,
        *,
        items: Mapping[int, Mapping[str, Mapping[str, Any]]] | None = None,
        schema: ServiceSchema = SCHEMA,
    ) -> None:
        self.rows = rows
        self.items = items or {}
        self.schema = schema
        self.time_us = time_us
        self.wait_s = 0.0
        self.error: Exception | None = None
        self.reads = 0
        self.closed = False

    async def read(self, keys: Mapping[str, Sequence[int]], now_us: int) -> OnlineRows:
        self.reads += 1
        await asyncio.sleep(self.wait_s)
        if self.error is not None:
            raise self.error
        found = OnlineRows({}, {}, {}, {})
        assert set(keys) == {view.entity for view in self.schema.views}
        for view in self.schema.views:
            known = self.items if view.entity == "item_id" else self.rows
            rows = [known.get(key, {}).get(view.name) for key in keys[view.entity]]
            age_us = now_us - self.time_us
            state = STALE if age_us > view.ttl_s * 1_000_000 else FRESH
            status = np.array([MISSING if row is None else state for row in rows], np.uint8)
            found.status[view.name] = status
            found.time_us[view.name] = np.where(status == MISSING, 0, self.time_us)
            for feature in view.features:
                values = [None if row is None or state == STALE else row.get(feature.name) for row in rows]
                found.null[feature.name] = np.array([value is None for value in values])
                found.columns[feature.name] = _column(feature, values)
        return found

    async def close(self) -> None:
        self.closed = True


def rows_of(columns: Mapping[str, Any], keys: Sequence[int]) -> dict[int, dict[str, dict[str, Any]]]:
    """Rows of users `keys` from the columns of samples, one each; views without a value are left out."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for place, key in enumerate(keys):
        found[key] = {}
        for view in SCHEMA.views:
            row = {each.name: columns.get(each.name, [None] * len(keys))[place] for each in view.features}
            if any(value is not None for value in row.values()):
                found[key][view.name] = row
    return found


def as_json(row: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The features of one user as a request gives them."""
    return {
        name: None
        if value is None
        else value.tolist()
        if isinstance(value, (np.ndarray, np.generic))
        else value
        for view in row.values()
        for name, value in view.items()
    }


def _write_model(folder: Path, kind: type[Student] | type[Teacher], seed: int, schema: ServiceSchema) -> Path:
    torch.manual_seed(seed)
    model = kind(toy.architecture(WITH_ITEM if schema == ITEM_SCHEMA else None))
    filled(model, toy.catalogue())
    save_model(folder, model, to_json(model.architecture), {"history": []})
    schema.write(folder)
    return folder


def _column(feature: FeatureSchema, values: Sequence[Any]) -> Any:
    if feature.is_list:
        return [np.array([] if value is None else value) for value in values]
    if feature.type.startswith("float"):
        return np.array([np.nan if value is None else value for value in values], np.float32)
    return np.array([0 if value is None else value for value in values], np.int64)


def _array(values: Any, type_: pa.DataType) -> pa.Array:
    return pa.array(
        [value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value for value in values]
    ).cast(type_)
