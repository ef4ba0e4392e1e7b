"""Rows of feature tables against their contract, before anything is written to a store.

The gate of `feedworks.validation` measures whole tables with Great Expectations. A store needs more and less:
every number inside a list, the row by its place and key, and an answer for pushed rows in a millisecond.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feedworks.contracts.features import PARALLEL_LISTS, FeatureTable
from feedworks.contracts.tables import Column
from feedworks.errors import DataError
from feedworks.features.schema import type_name
from feedworks.progress import Progress

Bools = npt.NDArray[np.bool_]
BATCH_ROWS = 131_072
MAX_SHOWN = 5


class Breach(NamedTuple):
    """What is wrong with a column: in how many rows, and the first of them."""

    table: str
    column: str
    problem: str
    num_rows: int
    first: str

    def __str__(self) -> str:
        return f"table {self.table}, column {self.column}: {self.num_rows} {self.problem}, first {self.first}"


class Checked(NamedTuple):
    """Rows against their contract: which of the N are wrong, and why."""

    bad_N: Bools
    breaches: list[Breach]


def check_rows(table: FeatureTable, rows: pa.Table, *, first_row: int = 0) -> Checked:
    """Types, nulls, NaN, ranges and lengths of lists, row by row; the order of rows is not looked at.

    Args:
        table: The contract.
        rows: N rows with any of its columns; those of other types are wrong in every row that does not fit.
        first_row: Number of the first row, for messages.
    """
    bad_N, breaches = np.zeros(rows.num_rows, bool), []
    for column, problem, wrong_N in _wrong(table, rows.combine_chunks()):
        if wrong_N.any():
            bad_N |= wrong_N
            breaches.append(_breach(table, column, problem, wrong_N, rows, first_row))
    return Checked(bad_N, breaches)


def require_rows(table: FeatureTable, rows: pa.Table) -> None:
    """`check_rows`, where any wrong row is an error.

    Raises:
        DataError: It names table, column, number of rows and the first of them.
    """
    _raise(check_rows(table, rows).breaches)


def check_tables(folder: Path, tables: Iterable[FeatureTable]) -> tuple[dict[str, int], list[Breach]]:
    """Reads feature tables once, batch by batch: rows of each, and what is wrong, also with their order.

    Raises:
        DataError: A table is missing, is not readable, or lacks a column.
    """
    num_rows: dict[str, int] = {}
    breaches: list[Breach] = []
    for table in tables:
        num_rows[table.name] = 0
        before: tuple[int, int] | None = None
        found: list[Breach] = []
        for rows in _batches(table, folder):
            first_row = num_rows[table.name]
            checked = check_rows(table, rows, first_row=first_row)
            found += checked.breaches
            if not checked.bad_N.any():
                ordered, before = _check_order(table, rows, before, first_row)
                found += ordered
            num_rows[table.name] += rows.num_rows
        breaches += _merged(found)
    return num_rows, breaches


def require_tables(folder: Path, tables: Iterable[FeatureTable]) -> dict[str, int]:
    """`check_tables`, where anything wrong is an error; rows of each table.

    Raises:
        DataError: It names table, column, number of rows and the first of them.
    """
    num_rows, breaches = check_tables(folder, tables)
    _raise(breaches)
    return num_rows


def _raise(breaches: Sequence[Breach]) -> None:
    if breaches:
        more = f"; and {len(breaches) - MAX_SHOWN} more" if len(breaches) > MAX_SHOWN else ""
        text = "; ".join(map(str, breaches[:MAX_SHOWN]))
        raise DataError(f"{text}{more}; nothing was written, mend or drop these rows")


def _batches(table: FeatureTable, folder: Path) -> Iterator[pa.Table]:
    path = table.path(folder)
    if not path.is_file():
        raise DataError(f"table {table.name}: {path} is missing; build the feature tables first")
    try:
        with pq.ParquetFile(path) as file:
            missing = sorted(set(table.schema.names) - set(file.schema_arrow.names))
            if missing:
                raise DataError(f"table {table.name}: {path} lacks columns {missing}; write it again")
            with Progress(f"checking {table.name}", total=file.metadata.num_rows) as shown:
                for batch in file.iter_batches(BATCH_ROWS, columns=table.schema.names):
                    yield pa.Table.from_batches([batch]).select(table.schema.names)
                    shown.advance(batch.num_rows)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"table {table.name}: cannot read {path} ({reason}); write it again") from None


def _wrong(table: FeatureTable, rows: pa.Table) -> Iterator[tuple[str, str, Bools]]:
    """Column, problem and in which rows."""
    lengths: dict[str, Any] = {}
    for column in table.columns:
        if column.name not in rows.column_names:
            continue
        found = rows[column.name].combine_chunks()
        values, wrong_N = _typed(column, found)
        yield column.name, f"are no {_type(column)} but {found.type}", wrong_N
        if wrong_N.any():
            continue
        null_N = values.is_null().to_numpy(zero_copy_only=False)
        if not column.nullable:
            yield column.name, "are null", null_N
        if not column.is_vector:
            yield from _wrong_numbers(column, values, np.arange(len(values)), len(values), null_N)
            continue
        row_of_M = pc.list_parent_indices(values).to_numpy()
        inside = values.flatten()
        null_M = inside.is_null().to_numpy(zero_copy_only=False)
        yield column.name, "hold a null", _at(row_of_M[null_M], len(values))
        yield from _wrong_numbers(column, inside, row_of_M, len(values), null_M)
        if column.name in PARALLEL_LISTS.get(table.name, ()):
            lengths[column.name] = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    first = next(iter(lengths), "")
    for name, length_N in lengths.items():
        yield name, f"are not as long as {first}", length_N != lengths[first]


def _wrong_numbers(
    column: Column, values: pa.Array, row_of_M: npt.NDArray[np.int64], num_rows: int, null_M: Bools
) -> Iterator[tuple[str, str, Bools]]:
    """M numbers, those of rows or those inside lists, of which `row_of_M` says the row."""
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return
    # A whole number beside nulls would become a float, which merges those above 2^53.
    number_M = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(values.type):
        infinite_M = ~np.isfinite(number_M)
        yield column.name, "hold NaN or infinity", _at(row_of_M[infinite_M], num_rows)
    low = -np.inf if column.minimum is None else column.minimum
    high = np.inf if column.maximum is None else column.maximum
    outside_M = ((number_M < low) | (number_M > high)) & ~null_M & np.isfinite(number_M)
    yield column.name, f"are outside {_bounds(column)}", _at(row_of_M[outside_M], num_rows)


def _at(rows: npt.NDArray[np.int64], num_rows: int) -> Bools:
    wrong_N = np.zeros(num_rows, bool)
    wrong_N[rows] = True
    return wrong_N


def _bounds(column: Column) -> str:
    low = "-" if column.minimum is None else f"{column.minimum:g}"
    high = "-" if column.maximum is None else f"{column.maximum:g}"
    return f"[{low}, {high}]"


def _type(column: Column) -> str:
    return "timestamp" if column.type == pa.timestamp("us", tz="UTC") else type_name(column.type)


def _typed(column: Column, values: pa.Array) -> tuple[pa.Array, Bools]:
    """The values in the contract's type, and which rows do not fit it."""
    none_N = np.zeros(len(values), bool)
    if values.type == column.type:
        return values, none_N
    if not _kin(values.type, column.type):
        return values, _unreadable(column, values)
    try:
        return values.cast(column.type), none_N
    except pa.ArrowException:
        return values, _unreadable(column, values)


def _kin(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of one type can be those of the other, if they are in its range."""
    if pa.types.is_list(wanted):
        lists = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return bool(lists) and _kin(found.value_type, wanted.value_type)
    if pa.types.is_timestamp(wanted):
        return bool(pa.types.is_timestamp(found))
    numbers = (pa.types.is_integer, pa.types.is_floating)
    if any(is_kind(wanted) for is_kind in numbers):
        return bool(pa.types.is_null(found) or any(is_kind(found) for is_kind in numbers))
    return bool(found == wanted or pa.types.is_null(found))


def _unreadable(column: Column, values: pa.Array) -> Bools:
    """Rows that do not fit one by one; all of them where each would, as text that holds numbers."""
    wrong_N = np.zeros(len(values), bool)

    def search(low: int, high: int) -> None:
        part = values.slice(low, high - low)
        try:
            part.cast(column.type)
        except pa.ArrowException:
            if high - low == 1:
                wrong_N[low] = True
            else:
                middle = (low + high) // 2
                search(low, middle)
                search(middle, high)

    search(0, len(values))
    return wrong_N if wrong_N.any() else np.ones(len(values), bool)


def _breach(
    table: FeatureTable, column: str, problem: str, wrong_N: Bools, rows: pa.Table, first_row: int
) -> Breach:
    row = int(np.flatnonzero(wrong_N)[0])
    key = ", ".join(f"{name}={_shown(rows[name][row])}" for name in table.key if name in rows.column_names)
    value = "" if column in table.key else f": {_shown(rows[column][row])}"
    return Breach(table.name, column, problem, int(wrong_N.sum()), f"row {first_row + row} ({key}){value}")


def _shown(value: pa.Scalar) -> str:
    text = value.as_py()
    text = text.isoformat() if hasattr(text, "isoformat") else repr(text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_order(
    table: FeatureTable, rows: pa.Table, before: tuple[int, int] | None, first_row: int
) -> tuple[list[Breach], tuple[int, int] | None]:
    """Rows that repeat a key, or stand before their predecessor; and the last key."""
    assert table.event_time is not None
    if not rows.num_rows:
        return [], before
    entity_N = rows[table.entity].cast(pa.int64()).to_numpy()
    time_N = rows[table.event_time].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    entity = np.concatenate([[before[0] if before else entity_N[0]], entity_N])
    time = np.concatenate([[before[1] if before else time_N[0] - 1], time_N])
    same_N, step_N = np.diff(entity) == 0, np.diff(time)
    keys = ", ".join(table.key)
    found = [
        _breach(table, table.event_time, f"{problem} ({keys})", wrong_N, rows, first_row)
        for problem, wrong_N in (
            ("repeat the key of the row before", same_N & (step_N == 0)),
            ("stand in the wrong order", (np.diff(entity) < 0) | (same_N & (step_N < 0))),
        )
        if wrong_N.any()
    ]
    return found, (int(entity_N[-1]), int(time_N[-1]))


def _merged(breaches: Iterable[Breach]) -> list[Breach]:
    """One for each column and problem of a table, over all its batches."""
    found: dict[tuple[str, str, str], Breach] = {}
    for breach in breaches:
        key = breach[:3]
        first = found.get(key, breach._replace(num_rows=0))
        found[key] = first._replace(num_rows=first.num_rows + breach.num_rows)
    return list(found.values())
