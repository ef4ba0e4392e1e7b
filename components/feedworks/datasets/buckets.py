"""Tables larger than memory, put in the order of their ids: rows go to files, each for a range of ids."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.errors import DataError

# Rows that wait in memory before they are written, in all buckets together.
WAITING_ROWS = 4_000_000


class Buckets:
    """Rows by range of one id; use it as a context, which removes its files.

    Args:
        folder: Where the files go, in a folder of their own.
        key: Column of the id, whole numbers from 0.
        num_ids: Ids are below this.
        num_buckets: Files; one bucket must fit into memory.
    """

    def __init__(self, folder: Path, *, key: str, num_ids: int, num_buckets: int) -> None:
        self._key = key
        self._num_ids = num_ids
        self._num_buckets = max(1, min(num_buckets, num_ids))
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix=".buckets-")
        self._waiting: list[list[pa.Table]] = [[] for _ in range(self._num_buckets)]
        self._num_waiting = 0
        self._writers: dict[int, pq.ParquetWriter] = {}

    def __enter__(self) -> Buckets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()
        self._folder.cleanup()

    def add(self, rows: pa.Table) -> None:
        """Adds rows in any order; all tables have the same columns.

        Raises:
            DataError: An id is null, negative or not below `num_ids`.
        """
        if rows[self._key].null_count:
            raise DataError(f"column {self._key} has {rows[self._key].null_count} rows without a number")
        id_N = rows[self._key].to_numpy()
        if len(id_N) and not 0 <= id_N.min() <= id_N.max() < self._num_ids:
            wrong = id_N[(id_N < 0) | (id_N >= self._num_ids)][0]
            raise DataError(f"column {self._key}: {wrong} is not from 0 to {self._num_ids - 1}")
        bucket_N = id_N * self._num_buckets // self._num_ids
        order = np.argsort(bucket_N, kind="stable")
        rows, bucket_N = rows.take(pa.array(order)), bucket_N[order]
        start_B = np.searchsorted(bucket_N, np.arange(self._num_buckets + 1))
        for bucket in np.unique(bucket_N).tolist():
            part = rows.slice(start_B[bucket], start_B[bucket + 1] - start_B[bucket])
            self._waiting[bucket].append(part)
        self._num_waiting += len(rows)
        if self._num_waiting >= WAITING_ROWS:
            self._write()

    def read(self) -> Iterator[tuple[range, pa.Table | None]]:
        """Yields each range of ids with its rows, ranges in order, rows in the order of their coming."""
        self._write()
        for bucket in range(self._num_buckets):
            low = -(-bucket * self._num_ids // self._num_buckets)
            ids = range(low, -(-(bucket + 1) * self._num_ids // self._num_buckets))
            if bucket not in self._writers:
                yield ids, None
                continue
            self._writers.pop(bucket).close()
            path = self._path(bucket)
            with pq.ParquetFile(path) as file:
                rows = file.read()
            path.unlink()
            yield ids, rows

    def _write(self) -> None:
        for bucket, parts in enumerate(self._waiting):
            if parts:
                rows = pa.concat_tables(parts)
                if bucket not in self._writers:
                    self._writers[bucket] = pq.ParquetWriter(
                        self._path(bucket), rows.schema, compression="lz4", use_dictionary=False
                    )
                self._writers[bucket].write_table(rows)
                parts.clear()
        self._num_waiting = 0

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket}.parquet"
