"""What can be said of a table before its values: the file is there, whole, with the columns and types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.contracts.files import folder_layout, open_stream
from feedworks.contracts.tables import ROW_GROUP_ROWS, Table
from feedworks.validation.result import Check

# What pyarrow raises for a damaged file; a damaged column name is a UnicodeDecodeError.
BROKEN = (pa.ArrowException, OSError, UnicodeDecodeError)


class Opened(NamedTuple):
    """An open table, or None in its place if it cannot be read, with the checks made so far."""

    file: pq.ParquetFile | None
    checks: list[Check]

    @property
    def usable(self) -> bool:
        """Whether the values can be looked at."""
        return self.file is not None and all(check.success for check in self.checks)


def open_table(contract: Table, folder: Path) -> Opened:
    """Opens one table of a data folder as far as its footer. The caller closes the file."""
    path = contract.path(folder)
    if path.is_dir():
        mend = "write the table as one parquet file"
        return Opened(None, [_check(contract, "file", "is a folder, not a file", mend)])
    if not path.is_file():
        mend = f"write it or import the data; a data folder holds {folder_layout(contract.kind)}"
        return Opened(None, [_check(contract, "file", "is missing", mend)])
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        return Opened(None, [_check(contract, "file", "is empty (0 bytes)", "write the file again")])
    try:
        file = open_stream(path, page_checksum_verification=True)
        schema = file.schema_arrow
    except BROKEN as error:
        problem = f"is truncated or no parquet file ({num_bytes:,} bytes; {_reason(error)})"
        return Opened(None, [_check(contract, "file", problem, "write or copy the file again")])
    num_rows = file.metadata.num_rows
    if num_rows == 0:
        mend = "write the table with its rows" + ("" if contract.required else " or remove the file")
        return Opened(file, [_check(contract, "rows", "has 0 rows", mend)])
    return Opened(file, list(_column_checks(contract, schema, num_rows)))


def batches(file: pq.ParquetFile, contract: Table) -> Iterator[pa.RecordBatch]:
    """The contract's columns of an open table, a bounded number of rows at a time, in contract types.

    May be called again for another look, also with a contract of fewer columns.

    Raises:
        pa.ArrowException: A page is corrupt, or there are not as many rows as the footer says.
        OSError: A page is corrupt.
    """
    num_rows = 0
    num_read = min(contract.group_rows, ROW_GROUP_ROWS)
    for batch in file.iter_batches(batch_size=num_read, columns=contract.schema.names):
        # Nulls where the contract forbids them are the next checks' business, so they must survive the cast.
        yield pa.RecordBatch.from_arrays(
            [batch.column(c.name).cast(c.type) for c in contract.columns], names=contract.schema.names
        )
        num_rows += batch.num_rows
    if num_rows != file.metadata.num_rows:
        raise pa.ArrowInvalid(f"{num_rows:,} rows found, the footer says {file.metadata.num_rows:,}")


def unreadable(contract: Table, error: Exception, num_rows: int) -> Check:
    """The failed check for a table whose footer is whole and whose pages are not."""
    problem = f"has corrupt pages ({_reason(error)})"
    return _check(contract, "file", problem, "write or copy the file again", num_rows)


def _column_checks(contract: Table, schema: pa.Schema, num_rows: int) -> Iterator[Check]:
    for column in contract.columns:
        count = schema.names.count(column.name)
        if count != 1:
            problem = "is missing" if count == 0 else f"stands there {count} times"
            unused = ", null where unknown" if column.nullable else ""
            mend = f"write the column once, as {_words(column.type)}{unused}; found {', '.join(schema.names)}"
            yield _check(contract, column.name, problem, mend, num_rows)
            continue
        found = schema.field(column.name).type
        success = _same_values(found, column.type)
        wanted = _words(column.type)
        yield Check(
            table=contract.name,
            column=column.name,
            problem=f"has type {wanted}" if success else f"has type {_words(found)}, not {wanted},",
            success=success,
            count=0 if success else num_rows,
            num_rows=num_rows,
            mend=f"cast the column to {wanted}",
        )


def _same_values(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether the types hold the same values, however they are laid out."""
    if pa.types.is_list(expected):
        return bool(_is_list(found) and found.value_type == expected.value_type)
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_string(expected) or pa.types.is_large_string(expected):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    return bool(found == expected)


def _is_list(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    )


def _words(type_: pa.DataType) -> str:
    """The type without the name of a list's child, which differs between writers and means nothing."""
    return f"list of {type_.value_type}" if _is_list(type_) else str(type_)


def _check(contract: Table, column: str, problem: str, mend: str, num_rows: int = 0) -> Check:
    return Check(
        table=contract.name,
        column=column,
        problem=problem,
        success=False,
        count=num_rows,
        num_rows=num_rows,
        mend=mend,
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120].rstrip(".")
