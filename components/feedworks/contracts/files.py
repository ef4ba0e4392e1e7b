"""Contract tables to parquet files and back; a half-written file is never seen under its final name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.contracts.features import FEATURE_TABLES
from feedworks.contracts.ranking import FIELDS_FILE, SPLITS
from feedworks.contracts.retention import RETENTION_FOLDER
from feedworks.contracts.tables import DATA_FOLDER, ROW_GROUP_ROWS, Kind, Table
from feedworks.contracts.text import TEXT_FOLDER
from feedworks.errors import DataError

# The files of a data folder of each kind, and which of them may be absent.
FILES: dict[Kind, tuple[str, ...]] = {
    "interactions": tuple(contract.file_name for contract in DATA_FOLDER),
    "ranking": (*(f"{split}.parquet" for split in SPLITS), FIELDS_FILE),
    "retention": tuple(contract.file_name for contract in RETENTION_FOLDER),
    "features": tuple(contract.file_name for contract in FEATURE_TABLES),
    "text": tuple(contract.file_name for contract in TEXT_FOLDER),
}
_CONTRACTS: tuple[Table, ...] = (*DATA_FOLDER, *RETENTION_FOLDER, *FEATURE_TABLES, *TEXT_FOLDER)
# A column chunk is read through a buffer of so many bytes where a table is streamed.
STREAM_BUFFER_BYTES = 1 << 20
OPTIONAL = tuple(contract.file_name for contract in _CONTRACTS if not contract.required)


def write_table(contract: Table, rows: pa.Table, folder: Path) -> Path:
    """Writes `rows` as the table `contract` into `folder` and returns the file's path.

    Columns are put into contract order and cast to the contract's types; a nullable column that `rows` lacks
    is filled with nulls. Rows are written in the order given. The same rows give the same bytes.

    Raises:
        DataError: A column that may not be null is missing, a column is unknown, or a cast would lose values.
    """
    with table_writer(contract, folder) as write:
        write(rows)
    return contract.path(folder)


@contextmanager
def table_writer(contract: Table, folder: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yields a function that appends rows to the table `contract` in `folder`; see `write_table`.

    The file appears under its name when the block ends without an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = contract.path(folder)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")

    def write(rows: pa.Table) -> None:
        writer.write_table(_conform(contract, rows), row_group_size=contract.group_rows)

    try:
        with pq.ParquetWriter(
            partial, contract.schema, compression="zstd", write_page_checksum=True
        ) as writer:
            yield write
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_table(contract: Table, folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the table `contract` of the data folder `folder`, or only the named columns of it.

    This trusts the values; `feedworks.validation` is what checks them. Types that hold the same values, such
    as `large_string` or a list of fixed size, are turned into those of the contract.

    Raises:
        DataError: The file is missing, is not readable as parquet, or lacks a column.
    """
    wanted = pa.schema([contract.schema.field(name) for name in columns or contract.schema.names])
    # By path: a read through a Python file can abort the interpreter at its exit (apache/arrow#50482;
    # 9 of 14 runs with pyarrow 26).
    with _readable(contract, folder) as path, pq.ParquetFile(path) as file:
        _require_columns(contract, path, file, wanted)
        return file.read(columns=wanted.names).select(wanted.names).cast(wanted)


def open_stream(path: Path, *, page_checksum_verification: bool = False) -> pq.ParquetFile:
    """Opens a parquet file that is read batch by batch, in memory that does not grow with it.

    Without these two settings pyarrow reads whole column chunks of all row groups ahead.

    Raises:
        pa.ArrowException, OSError: The file is missing or no parquet file.
    """
    return pq.ParquetFile(
        path,
        pre_buffer=False,
        buffer_size=STREAM_BUFFER_BYTES,
        page_checksum_verification=page_checksum_verification,
    )


def read_batches(
    contract: Table, folder: Path, columns: Sequence[str], row_groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Reads named columns of the table `contract` in the order of its rows, a bounded number at a time.

    Like `read_table`, for tables that may be larger than memory. A batch may be empty.

    Args:
        contract: The table.
        folder: A data folder.
        columns: Their names, in the order wanted.
        row_groups: Which row groups of the file; all without it.

    Raises:
        DataError: The file is missing, is damaged, lacks a column or holds other types.
    """
    wanted = pa.schema([contract.schema.field(name) for name in columns])
    with _readable(contract, folder) as path, open_stream(path) as file:
        _require_columns(contract, path, file, wanted)
        read = file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=list(columns), row_groups=row_groups)
        for batch in read:
            yield batch.select(wanted.names).cast(wanted)


def group_rows(contract: Table, folder: Path) -> list[int]:
    """Rows of each row group of the table `contract`, from its footer.

    Raises:
        DataError: The file is missing or not readable as parquet.
    """
    with _readable(contract, folder) as path, open_stream(path) as file:
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


def read_file(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a parquet file that a step wrote, or only the named columns of it, in that order.

    Raises:
        DataError: The file is missing, is not readable as parquet, or lacks a column.
    """
    try:
        # By path, see `read_table`.
        with pq.ParquetFile(path) as file:
            missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
            if missing:
                raise DataError(f"{path} lacks columns {missing}; run the step that writes it again")
            rows = file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot read {path} ({reason}); run the step that writes it") from None
    return rows.select(columns) if columns else rows


def is_data_folder(folder: Path, kind: Kind = "interactions") -> bool:
    """Whether `folder` holds at least one file named like one of a data folder of this kind."""
    return any((folder / name).is_file() for name in FILES[kind])


def folder_layout(kind: Kind = "interactions") -> str:
    """The files of a data folder of this kind, for messages."""
    return ", ".join(name + (" (optional)" if name in OPTIONAL else "") for name in FILES[kind])


@contextmanager
def _readable(contract: Table, folder: Path) -> Iterator[Path]:
    """Yields the path of a table; what goes wrong while the block reads it becomes a `DataError`."""
    path = contract.path(folder)
    if not path.is_file():
        raise DataError(
            f"table {contract.name}: {path} is missing; a data folder holds {folder_layout(contract.kind)}"
        )
    try:
        yield path
    except (pa.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"table {contract.name}: cannot read {path} ({reason}); write it again") from None


def _require_columns(contract: Table, path: Path, file: pq.ParquetFile, wanted: pa.Schema) -> None:
    missing = sorted(set(wanted.names) - set(file.schema_arrow.names))
    if missing:
        raise DataError(f"table {contract.name}: {path} lacks columns {missing}; write it again")


def _conform(contract: Table, rows: pa.Table) -> pa.Table:
    unknown = sorted(set(rows.column_names) - set(contract.schema.names))
    if unknown:
        raise DataError(f"table {contract.name}: unknown columns {unknown}; known: {contract.schema.names}")
    arrays = []
    for column in contract.columns:
        if column.name in rows.column_names:
            try:
                arrays.append(rows[column.name].cast(column.type))
            except pa.ArrowException as error:
                reason = str(error).splitlines()[0]
                raise DataError(f"table {contract.name}, column {column.name}: {reason}") from None
        elif column.nullable:
            arrays.append(pa.nulls(rows.num_rows, column.type))
        else:
            raise DataError(f"table {contract.name}: column {column.name} is missing")
    return pa.table(arrays, schema=contract.schema)
