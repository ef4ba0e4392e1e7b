"""A table of any length as measured frames, one after the other, and what a suite must know of it as a whole.

Held in memory are one frame and one batch. Of a table of texts all is held: some 500 bytes for each text and
2 for each of its long sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from feedworks.contracts.expectations import IN_ORDER, spread_columns
from feedworks.contracts.tables import Column, Table
from feedworks.validation.measure import IntArray, in_order, mark_repeats, measure_batch

# Great Expectations takes some 250 bytes for each row of a frame.
BLOCK_ROWS = 524_288


class Facts(NamedTuple):
    """What a suite must know of a whole table: the usual width of vectors, and nulls where they may be."""

    widths: dict[str, int]
    num_nulls: dict[str, int]


class Spread:
    """Distinct values of the columns of which something is expected as a whole: as few as tell it."""

    def __init__(self, contract: Table) -> None:
        self._values: dict[str, pd.Series[Any]] = {}
        self._most = dict.fromkeys(spread_columns(contract), 2)
        self._most |= {f"{c.name}.place": len(c.one_of) + 1 for c in contract.columns if c.one_of}

    def add(self, frame: pd.DataFrame) -> None:
        """Look at a measured frame."""
        for name, most in self._most.items():
            found = frame[name].drop_duplicates().dropna().head(most)
            before = self._values.get(name)
            both = found if before is None else pd.concat([before, found]).drop_duplicates().head(most)
            self._values[name] = both.reset_index(drop=True)

    def frame(self) -> pd.DataFrame | None:
        """The values, filled up with nulls; None where nothing is expected of a column as a whole."""
        return pd.DataFrame(self._values) if self._values else None


def blocks(
    contract: Table, batches: Iterable[pa.RecordBatch], known: Mapping[str, IntArray]
) -> Iterator[pd.DataFrame]:
    """Reads a table once and yields its measured frames, of about `BLOCK_ROWS` rows each, numbered from 0.

    A frame ends where the columns change by which the table is sorted, so that rows with one key are in one
    frame. (Not so where rows are out of order, which is a breach by itself.) Texts that are compared with all
    others, and keys that the order says nothing of, need the whole table in one frame.

    Args:
        contract: The table.
        batches: Its rows in contract types, at least one batch.
        known: The sorted ids of each table that could be read, by table name.
    """
    parts: list[pd.DataFrame] = []
    before: pd.DataFrame | None = None
    num_rows, order = 0, list(contract.sorted_by)
    whole = any(c.apart_by is not None for c in contract.columns) or not _keys_stand_together(contract)
    for batch in batches:
        parts.append(measure_batch(contract, batch, known))
        num_rows += batch.num_rows
        if num_rows < BLOCK_ROWS or whole:
            continue
        frame = pd.concat(parts, ignore_index=True)
        cut = _last_change(frame[order]) if order else len(frame)
        if cut:
            yield _completed(contract, frame.iloc[:cut], before)
            before = frame.iloc[cut - 1 : cut].copy()
        parts, num_rows = [frame.iloc[cut:].copy()], len(frame) - cut
    if num_rows or before is None:
        yield _completed(contract, pd.concat(parts, ignore_index=True), before)


def facts(contract: Table, frames: Iterable[pd.DataFrame]) -> Facts:
    """What a suite must know, from all frames of a table or of the columns of `told_of`."""
    nulls: Counter[str] = Counter()
    widths: dict[str, Counter[Any]] = {c.name: Counter() for c in told_of(contract) if c.is_vector}
    for frame in frames:
        for column in told_of(contract):
            nulls[column.name] += int(frame[column.name].isna().sum())
            if column.is_vector:
                width_N = frame[f"{column.name}.width"]
                widths[column.name].update(width_N[width_N > 0].value_counts().to_dict())
    usual = {name: int(count.most_common(1)[0][0]) if count else 1 for name, count in widths.items()}
    return Facts(usual, dict(nulls))


def told_of(contract: Table) -> list[Column]:
    """The columns of which a suite must know something before it looks at the first row."""
    return [c for c in contract.columns if c.nullable or (c.is_vector and not c.any_width)]


def _completed(contract: Table, frame: pd.DataFrame, before: pd.DataFrame | None) -> pd.DataFrame:
    """Adds what is measured of a row beside others, `before` being the row before the first one."""
    frame = frame.reset_index(drop=True)
    for column in contract.columns:
        if column.apart_by is not None:
            mark_repeats(frame, column.name, column.apart_by)
    if contract.sorted_by:
        order = frame[list(contract.sorted_by)]
        if before is None:
            frame[IN_ORDER] = in_order(order)
        else:
            frame[IN_ORDER] = in_order(pd.concat([before[order.columns], order], ignore_index=True))[1:]
    return frame


def _keys_stand_together(contract: Table) -> bool:
    """Whether rows with one key have one place in the order; so if there is no key."""
    order = contract.sorted_by
    return not contract.key or (bool(order) and set(order) <= set(contract.key))


def _last_change(order: pd.DataFrame) -> int:
    """Where the last run of equal rows begins; rows with a null are equal to none."""
    same_N = np.ones(len(order), bool)
    for name in order.columns:
        now = order[name]
        same_N &= (now == now.shift(1, fill_value=now.iloc[0])).fillna(False).to_numpy(bool)
    changes = np.flatnonzero(~same_N[1:])
    return int(changes[-1]) + 1 if len(changes) else 0
