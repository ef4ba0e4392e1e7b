"""The cells of packed rows: values of variable length as bytes and back, and columns of Arrow tables.

Shape letters: N rows.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Column = npt.NDArray[Any] | list[npt.NDArray[Any]]

# type -> (numpy, code of struct and array)
NUMBERS: dict[str, tuple[str, str]] = {
    "int32": ("<i4", "i"),
    "int64": ("<i8", "q"),
    "float32": ("<f4", "f"),
    "float64": ("<f8", "d"),
    "bool": ("?", "?"),
    "timestamp": ("<i8", "q"),  # seconds, as Feast stores them
}
PROTO = "proto"  # what numpy has no type for (maps, sets, structures) is kept as Feast's own serialised value
_COUNT = struct.Struct("<I")
_ZERO = {"float32": float("nan"), "float64": float("nan"), "bool": False}


def is_list(type_: str) -> bool:
    """Whether a value of the type is a list."""
    return type_.startswith("list<")


def _inner(type_: str) -> str:
    return type_.removeprefix("list<").removesuffix(">")


def encoder(type_: str) -> Callable[[Any], bytes]:
    """The function that packs a value of variable length."""
    if not is_list(type_):
        return _text if type_ == "string" else bytes
    inner = _inner(type_)
    if inner in NUMBERS:
        numpy_type, code = NUMBERS[inner]
        if code == "?":
            return lambda values: bytes(map(bool, values))
        return lambda values: (
            values.tobytes()
            if isinstance(values, np.ndarray) and values.dtype == numpy_type
            else array(code, values).tobytes()
        )
    encode = _text if inner == "string" else bytes
    return lambda values: _pack_list([encode(value) for value in values])


def _text(value: str) -> bytes:
    return value.encode()


def _pack_list(cells: Sequence[bytes]) -> bytes:
    ends = np.cumsum([len(cell) for cell in cells], dtype="<u4")
    return b"".join([_COUNT.pack(len(cells)), ends.tobytes(), *cells])


def _unpack_list(cell: bytes) -> list[bytes]:
    if not cell:
        return []
    (count,) = _COUNT.unpack_from(cell)
    ends = np.frombuffer(cell, "<u4", count, _COUNT.size).tolist()
    body = cell[_COUNT.size * (count + 1) :]
    return [body[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def decoded(cells: Sequence[bytes], type_: str, null_N: Bools) -> list[Any]:
    """The values of cells of variable length."""
    if not is_list(type_):
        values: list[Any] = [cell.decode() for cell in cells] if type_ == "string" else list(cells)
        for i in np.flatnonzero(null_N):
            values[i] = None
        return values
    inner = _inner(type_)
    if inner not in NUMBERS:
        decode: Callable[[bytes], Any] = bytes.decode if inner == "string" else bytes
        return [objects([decode(part) for part in _unpack_list(cell)]) for cell in cells]
    # One array for all rows, of its own memory: torch takes no arrays that cannot be written.
    dtype = np.dtype(NUMBERS[inner][0])
    flat = np.frombuffer(bytearray(b"".join(cells)), dtype)
    ends = np.cumsum([len(cell) // dtype.itemsize for cell in cells]).tolist()
    return [flat[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def spread(values: list[Any], type_: str, at: Ints, num_rows: int) -> Column:
    """Values of the rows `at` among `num_rows`; the others are None, or empty where they are lists."""
    if not is_list(type_):
        column = np.full(num_rows, None, dtype=object)
        column[at] = objects(values)
        return column
    if len(at) == num_rows:
        return values
    inner = _inner(type_)
    empty: npt.NDArray[Any] = np.empty(0, NUMBERS[inner][0] if inner in NUMBERS else object)
    lists = [empty] * num_rows
    for i, value in zip(at.tolist(), values, strict=True):
        lists[i] = value
    return lists


def objects(values: list[Any]) -> npt.NDArray[Any]:
    """An array of objects, also where they are sequences of one length."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def cut(fixed: npt.NDArray[Any]) -> list[bytes]:
    """The records as bytes, one by one."""
    whole, size = fixed.tobytes(), fixed.dtype.itemsize
    return [whole[i : i + size] for i in range(0, len(whole), size)]


def numbers_of(column: pa.ChunkedArray, type_: str) -> npt.NDArray[Any]:
    """A column of numbers; a null is 0 or NaN."""
    if type_ == "timestamp":
        column = column.cast(pa.timestamp("s", tz=column.type.tz), safe=False).cast(pa.int64())
    if column.null_count:
        column = column.fill_null(_ZERO.get(type_, 0))
    numbers: npt.NDArray[Any] = column.to_numpy()
    return numbers


def cells_of(column: pa.ChunkedArray, type_: str, encode: Callable[[Any], bytes]) -> list[bytes]:
    """The packed cells of a column of variable length; a null is empty."""
    inner = _inner(type_)
    if not is_list(type_) or inner not in NUMBERS:
        return [b"" if value is None else encode(value) for value in column.to_pylist()]
    cells: list[bytes] = []
    size = np.dtype(NUMBERS[inner][0]).itemsize
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        first = int(offsets[0])
        values = pa.chunked_array([chunk.values.slice(first, int(offsets[-1]) - first)])
        data = numbers_of(values, inner).tobytes()
        at = ((offsets - first) * size).tolist()
        cells += [data[a:b] for a, b in pairwise(at)]
    return cells
