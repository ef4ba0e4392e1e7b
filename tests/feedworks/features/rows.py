"""Small feature tables for tests: rows by entity and time, the other columns random but of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from feedworks.contracts.features import FeatureTable
from feedworks.contracts.files import write_table
from feedworks.contracts.tables import EVENT_TIME, Column

SECOND = 1_000_000  # in microseconds
HOUR = 3600 * SECOND
DAY = 24 * HOUR
START = 1_700_000_000 * SECOND


def times(values_us: Sequence[int]) -> pa.Array:
    return pa.array(values_us, pa.int64()).cast(EVENT_TIME)


def values(column: Column, num_rows: int, rng: np.random.Generator) -> pa.Array:
    """Random values that the contract allows; lists of one row of a table have the same length."""
    high = int(column.maximum) if column.maximum is not None else 1000
    if column.is_vector:
        numbers = pa.array(rng.integers(0, high + 1, 3 * num_rows)).cast(column.type.value_type)
        return pa.ListArray.from_arrays(np.arange(0, 3 * num_rows + 1, 3, dtype=np.int32), numbers)
    return pa.array(rng.integers(0, high + 1, num_rows)).cast(column.type)


def table_of(
    contract: FeatureTable, entities: Sequence[int], times_us: Sequence[int], seed: int = 0, **given: Any
) -> pa.Table:
    """One row per entity and time, in the order of the contract; `given` replaces columns, before sorting."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        contract.entity: pa.array(entities, pa.int64()),
        "event_time": times(times_us),
        **{c.name: values(c, len(entities), rng) for c in contract.features},
    }
    for name, replaced in given.items():
        columns[name] = pa.array(replaced, contract.column(name).type)
    order = np.lexsort((np.asarray(times_us, np.int64), np.asarray(entities, np.int64)))
    return pa.table(columns).take(order)


def write(
    contract: FeatureTable,
    folder: Path,
    entities: Sequence[int],
    times_us: Sequence[int],
    seed: int = 0,
    **given: Any,
) -> pa.Table:
    """`table_of`, written into `folder`."""
    table = table_of(contract, entities, times_us, seed, **given)
    write_table(contract, table, folder)
    return table
