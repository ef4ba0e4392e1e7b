"""OCARM (arXiv 2604.25839): columns of any origin (parquet, an online store, a request) as arrays.

Shape legend: B rows, K values of all rows' lists one after the other, T places of a padded list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feedworks.errors import DataError

Columns = Mapping[str, Any]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Lists(NamedTuple):
    """A column of lists: all values `value_K`, and where each row's begin and how many they are."""

    value_K: npt.NDArray[Any]
    start_B: IntArray
    length_B: IntArray


class Latest(NamedTuple):
    """Places of the latest values of each row, oldest first, real ones left: `index_BT` into `value_K`."""

    index_BT: IntArray
    length_B: IntArray

    def take(self, value_K: npt.NDArray[Any], empty: float = 0) -> npt.NDArray[Any]:
        """Values `(B, T)` with `empty` where a row has none."""
        if not len(value_K):
            return np.full(self.index_BT.shape, empty, dtype=value_K.dtype)
        real_BT = np.arange(self.index_BT.shape[1]) < self.length_B[:, None]
        found: npt.NDArray[Any] = np.where(real_BT, value_K[self.index_BT], empty).astype(value_K.dtype)
        return found


def numbers(columns: Columns, name: str) -> FloatArray:
    """A column of numbers `(B,)`; what is null or not finite becomes NaN.

    Raises:
        DataError: there is no such column, or it holds no numbers.
    """
    column = _column(columns, name)
    if isinstance(column, (pa.ChunkedArray, pa.Array)):
        column = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    try:
        found = np.array(column, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"column {name}: expected numbers, got {_shown(column)}") from None
    found[~np.isfinite(found)] = np.nan
    return found


def codes(columns: Columns, name: str, size: int) -> IntArray:
    """A column of codes `(B,)` moved up by one; 0 is what is null or not from 0 to below `size`.

    Raises:
        DataError: as `numbers`.
    """
    return _moved(numbers(columns, name), size)


def ids(columns: Columns, name: str) -> IntArray:
    """A column of ids `(B,)` as whole numbers of 64 bits; -1 where null.

    Raises:
        DataError: there is no such column, or it holds other values.
    """
    return _whole(_column(columns, name), name)


def times(columns: Columns, name: str) -> IntArray:
    """A column of times without nulls `(B,)`, in microseconds since 1970 UTC, from timestamps or numbers.

    Raises:
        DataError: there is no such column, or a value is null or no time.
    """
    column = _column(columns, name)
    if isinstance(column, (pa.ChunkedArray, pa.Array)) and pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", tz=column.type.tz)).cast(pa.int64())
    elif getattr(getattr(column, "dtype", None), "kind", "") == "M":
        column = np.asarray(column).astype("datetime64[us]").astype(np.int64)
    found = _whole(column, name)
    if (found < 0).any():
        raise DataError(f"column {name}: row {int((found < 0).argmax())} has no time")
    return found


def lists(columns: Columns, name: str, kind: type[np.int64] | type[np.float64]) -> Lists:
    """A column of lists of numbers; a null row is an empty list, a null value -1 (int64) or NaN (float64).

    Raises:
        DataError: there is no such column, or it holds other values.
    """
    column = _column(columns, name)
    try:
        if isinstance(column, (pa.ChunkedArray, pa.Array)):
            value_K, length_B = _flat_arrow(column, kind)
        else:
            rows = [() if row is None else row for row in column]
            length_B = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
            value_K = np.concatenate(
                [np.empty(0, dtype=kind), *(np.asarray(row, dtype=kind) for row in rows)]
            )
    except (TypeError, ValueError, OverflowError, pa.ArrowException):
        raise DataError(f"column {name}: expected lists of numbers, got {_shown(column)}") from None
    return Lists(value_K.astype(kind, copy=False), np.cumsum(length_B) - length_B, length_B)


def latest(of: Lists, most: int) -> Latest:
    """The last `most` values of every row."""
    length_B = np.minimum(of.length_B, most)
    first_B = of.start_B + of.length_B - length_B
    index_BT = first_B[:, None] + np.arange(most)
    return Latest(np.minimum(index_BT, max(len(of.value_K) - 1, 0)), length_B)


def parallel(columns: Columns, kinds: Mapping[str, type[np.int64] | type[np.float64]]) -> dict[str, Lists]:
    """Lists that belong together.

    Raises:
        DataError: as `lists`, or two of them differ in length in a row.
    """
    found = {name: lists(columns, name, kind) for name, kind in kinds.items()}
    (first, one), *rest = found.items()
    for name, other in rest:
        if not np.array_equal(one.length_B, other.length_B):
            raise DataError(f"columns {first} and {name}: their lists differ in length or number")
    return found


def _column(columns: Columns, name: str) -> Any:
    if name not in columns:
        raise DataError(f"column {name} is missing; give it with nulls where nothing is known")
    return columns[name]


def _flat_arrow(
    column: pa.ChunkedArray | pa.Array, kind: type[np.int64] | type[np.float64]
) -> tuple[npt.NDArray[Any], IntArray]:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_null(array.type):
        return np.empty(0, dtype=kind), np.zeros(len(array), dtype=np.int64)
    length_B = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.fill_null(array.flatten(), -1 if kind is np.int64 else float("nan"))
    if kind is np.int64:
        flat = flat.cast(pa.int64())
    return flat.to_numpy(zero_copy_only=False).astype(kind), length_B


def _whole(column: Any, name: str) -> IntArray:
    if isinstance(column, (pa.ChunkedArray, pa.Array)):
        column = pc.fill_null(column, -1).cast(pa.int64()) if not pa.types.is_null(column.type) else column
        column = [-1] * len(column) if pa.types.is_null(column.type) else column.to_numpy()
    elif isinstance(column, Sequence):
        column = [-1 if value is None else value for value in column]
    found = np.asarray(column)
    if found.dtype.kind == "f":
        found = np.where(np.isfinite(found), found, -1)
    if found.dtype.kind not in "iuf" or (found != np.floor(found)).any():
        raise DataError(f"column {name}: expected whole numbers, got {_shown(column)}")
    return found.astype(np.int64)


def _moved(value: FloatArray, size: int) -> IntArray:
    known = (value >= 0) & (value < size)
    moved: IntArray = np.where(known, np.nan_to_num(value) + 1, 0).astype(np.int64)
    return moved


def _shown(column: Any) -> str:
    return f"{type(column).__name__} of {str(column[0])[:40] if len(column) else 'no rows'}"


def moved_codes(value: npt.NDArray[Any], size: int) -> IntArray:
    """Codes of any shape moved up by one; 0 for what is not from 0 to below `size`."""
    return _moved(np.asarray(value, dtype=np.float64), size)
