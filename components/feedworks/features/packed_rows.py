"""The packed row: all that the online store holds about one entity in one view, as bytes.

A row is a fixed part, which numpy reads as one structured record, and a part of variable length behind it:

    event_us    int64   when the row became known, microseconds since 1970 UTC; first, so that a script in
    created_us  int64   the store can compare rows without knowing their schema. created_us is 0 if unknown
    version     uint64  digest of view, entity, names and types of the fields
    nulls       a bit per field, the lowest bit of a byte first
    scalars     little-endian, without padding; a null is 0 or NaN
    ends        uint32 per other field: where it ends in the variable part
    variable    strings, bytes, lists; a list of numbers is its numbers, one of strings its count, ends, bytes

Rows of one view without strings and lists are equally long: reading N of them is one join and one view by
numpy. A row of another version, or one that is damaged, reads as missing.

Shape letters: N rows, F fields.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.errors import DataError
from feedworks.features.packed_cells import (
    NUMBERS,
    Bools,
    Column,
    Ints,
    cells_of,
    cut,
    decoded,
    encoder,
    numbers_of,
    spread,
)


class Block(NamedTuple):
    """N decoded rows.

    Attributes:
        time_us: (N,) event times; 0 where there is no row of this version.
        null: field -> (N,) True where there is no value: no usable row, or a null in it.
        columns: field -> (N,) numbers, or objects for strings and bytes, or N arrays for lists. A null is 0,
            NaN, None or an empty array.
    """

    time_us: Ints
    null: dict[str, Bools]
    columns: dict[str, Column]


class RowLayout:
    """How the rows of one view are laid out.

    Args:
        view: name of the view.
        entity: its join key.
        fields: (name, type) in order; types as in `feedworks.features.schema`, or
            `PROTO`.
    """

    def __init__(self, view: str, entity: str, fields: Sequence[tuple[str, str]]) -> None:
        self.view = view
        self.entity = entity
        self.fields = tuple(fields)
        self.scalars = [(i, name) for i, (name, type_) in enumerate(fields) if type_ in NUMBERS]
        self.variable = [(i, name) for i, (name, type_) in enumerate(fields) if type_ not in NUMBERS]
        types = [type_ for _, type_ in fields]
        codes = "".join(NUMBERS[types[i]][1] for i, _ in self.scalars)
        num_bytes = (len(fields) + 7) // 8
        self._fixed = struct.Struct(f"<qqQ{num_bytes}s{codes}{'I' * len(self.variable)}")
        self.dtype = np.dtype(
            [("event_us", "<i8"), ("created_us", "<i8"), ("version", "<u8"), ("nulls", "u1", (num_bytes,))]
            + [(f"f{i}", NUMBERS[types[i]][0]) for i, _ in self.scalars]
            + [("ends", "<u4", (len(self.variable),))] * bool(self.variable)
        )
        self._null_values = tuple(float("nan") if code in "fd" else 0 for code in codes)
        self._encoders = [encoder(types[i]) for i, _ in self.variable]

    @cached_property
    def digest(self) -> str:
        """The version, 16 hex digits; the same as `ViewSchema.digest`."""
        layout = [self.view, self.entity, *([name, type_] for name, type_ in self.fields)]
        return hashlib.sha256(json.dumps(layout).encode()).hexdigest()[:16]

    @cached_property
    def version(self) -> int:
        """The digest as the number that stands in a row."""
        return int(self.digest, 16)

    def encode(self, values: Sequence[Any], event_us: int, created_us: int = 0) -> bytes:
        """Pack one row.

        Args:
            values: in the order of the fields; None is a null, lists are sequences.
            event_us: when the row became known, microseconds since 1970 UTC.
            created_us: when it was written at the source; 0 if unknown.

        Raises:
            DataError: a value is not of its field's type, or out of range; it names view and field.
        """
        bits = 0
        for i, value in enumerate(values):
            if value is None:
                bits |= 1 << i
        numbers = [values[i] for i, _ in self.scalars]
        if bits:
            numbers = [
                null if value is None else value
                for value, null in zip(numbers, self._null_values, strict=True)
            ]
        parts, ends, end = [], [], 0
        try:
            for (i, _), encode in zip(self.variable, self._encoders, strict=True):
                if values[i] is not None:
                    parts.append(encode(values[i]))
                    end += len(parts[-1])
                ends.append(end)
            nulls_bytes = bits.to_bytes((len(self.fields) + 7) // 8, "little")
            head = self._fixed.pack(event_us, created_us, self.version, nulls_bytes, *numbers, *ends)
        except (struct.error, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(f"view {self.view}: {self._culprit(values)}: {error}") from None
        return b"".join([head, *parts]) if parts else head

    def encode_table(self, table: pa.Table, event_us: Ints, created_us: Ints | None = None) -> list[bytes]:
        """Pack the rows of an Arrow table, whose columns have the fields' Arrow types.

        Args:
            table: has at least the fields.
            event_us: (N,) event times.
            created_us: (N,) times of writing; unknown where None.
        """
        fixed = np.zeros(len(table), dtype=self.dtype)
        fixed["event_us"], fixed["version"] = event_us, self.version
        if created_us is not None:
            fixed["created_us"] = created_us
        for i, name in self.scalars:
            fixed[f"f{i}"] = numbers_of(table.column(name), self.fields[i][1])
        null = np.zeros((len(table), 8 * fixed["nulls"].shape[1]), dtype=bool)
        for i, (name, _) in enumerate(self.fields):
            if table.column(name).null_count:
                null[:, i] = table.column(name).is_null().to_numpy(zero_copy_only=False)
        fixed["nulls"] = np.packbits(null, axis=1, bitorder="little")
        if not self.variable:
            return cut(fixed)
        cells = [
            cells_of(table.column(name), self.fields[i][1], encode)
            for (i, name), encode in zip(self.variable, self._encoders, strict=True)
        ]
        lengths = np.array([[len(cell) for cell in column] for column in cells])
        fixed["ends"] = lengths.cumsum(axis=0).T
        return [b"".join(parts) for parts in zip(cut(fixed), *cells, strict=True)]

    def decode(self, rows: Sequence[bytes | None], not_before_us: int | None = None) -> Block:
        """Unpack N rows into columns.

        Args:
            rows: as read, None where the store has none.
            not_before_us: rows older than this keep their time, but their values read as null.
        """
        at, records, kept = self._records(rows)
        time_us = np.zeros(len(rows), dtype=np.int64)
        time_us[at] = records["event_us"]
        if not_before_us is not None:
            usable = records["event_us"] >= not_before_us
            if not usable.all():
                at, records = at[usable], records[usable]
                kept = [row for row, use in zip(kept, usable, strict=False) if use]
        return Block(time_us, *self._columns(len(rows), at, records, kept))

    def decode_rows(self, rows: Sequence[bytes | None]) -> list[tuple[int, list[Any]] | None]:
        """Unpack rows one by one: (event_us, values in the order of the fields), None where there is none.

        Lists are numpy arrays, a null is None; `proto` fields are bytes.
        """
        at, records, kept = self._records(rows)
        null, columns = self._columns(len(at), np.arange(len(at)), records, kept)
        listed = []
        for name, _ in self.fields:
            column = columns[name]
            values = column.tolist() if isinstance(column, np.ndarray) else list(column)
            for i in np.flatnonzero(null[name]):
                values[i] = None
            listed.append(values)
        found: list[tuple[int, list[Any]] | None] = [None] * len(rows)
        times = records["event_us"].tolist()
        for i, time_us, *values in zip(at.tolist(), times, *listed, strict=True):
            found[i] = (time_us, values)
        return found

    def _records(self, rows: Sequence[bytes | None]) -> tuple[Ints, npt.NDArray[Any], list[bytes]]:
        """Where there is a row of this version, its fixed part, and the row itself if lengths vary."""
        size = self.dtype.itemsize
        if not self.variable and None not in rows:
            joined = b"".join(rows)  # type: ignore[arg-type]
            if len(joined) == size * len(rows):
                found = np.frombuffer(joined, dtype=self.dtype)
                if (found["version"] == self.version).all():
                    return np.arange(len(rows)), found, []
        whole = [(i, row) for i, row in enumerate(rows) if row is not None and len(row) >= size]
        if not self.variable:
            whole = [(i, row) for i, row in whole if len(row) == size]
        kept = [row for _, row in whole]
        heads = kept if not self.variable else [row[:size] for row in kept]
        records = np.frombuffer(b"".join(heads), dtype=self.dtype)
        good = records["version"] == self.version
        if self.variable:
            good &= records["ends"][:, -1] + size == np.fromiter(map(len, kept), np.int64, len(kept))
        at = np.fromiter((i for i, _ in whole), np.int64, len(whole))
        if not good.all():
            at, records = at[good], records[good]
            kept = [row for row, is_good in zip(kept, good, strict=True) if is_good]
        return at, records, kept

    def _columns(
        self, num_rows: int, at: Ints, records: npt.NDArray[Any], kept: Sequence[bytes]
    ) -> tuple[dict[str, Bools], dict[str, Column]]:
        all_there = len(at) == num_rows
        bits = np.unpackbits(records["nulls"], axis=1, bitorder="little").astype(bool)
        null_NF = bits if all_there else np.ones((num_rows, bits.shape[1]), dtype=bool)
        if not all_there:
            null_NF[at] = bits
        null = {name: null_NF[:, i] for i, (name, _) in enumerate(self.fields)}
        columns: dict[str, Column] = {}
        for i, name in self.scalars:
            found = records[f"f{i}"]
            if all_there:
                columns[name] = np.ascontiguousarray(found)
            else:
                empty = np.nan if found.dtype.kind == "f" else 0
                columns[name] = np.full(num_rows, empty, dtype=found.dtype)
                columns[name][at] = found
        size = self.dtype.itemsize
        for k, (i, name) in enumerate(self.variable):
            ends = (records["ends"][:, k] + size).tolist()
            starts = (records["ends"][:, k - 1] + size).tolist() if k else [size] * len(kept)
            cells = [row[a:b] for row, a, b in zip(kept, starts, ends, strict=True)]
            columns[name] = spread(
                decoded(cells, self.fields[i][1], null_NF[at, i]), self.fields[i][1], at, num_rows
            )
        return null, columns

    def _culprit(self, values: Sequence[Any]) -> str:
        """The first field whose value cannot be packed."""
        for i, (name, type_) in enumerate(self.fields):
            try:
                if values[i] is None:
                    continue
                if type_ in NUMBERS:
                    struct.pack("<" + NUMBERS[type_][1], values[i])
                else:
                    encoder(type_)(values[i])
            except (struct.error, TypeError, ValueError, OverflowError, AttributeError):
                return f"{name} = {values[i]!r:.60} is no {type_}"
        return "the times are out of range"
