"""Tables to measured frames: what `feedworks.contracts.expectations` looks at, in a few bytes per row.

Shapes: N rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feedworks.contracts.tables import Column, Table

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
# One of so many sentences of at least so many bytes is looked for in other splits; a text with fewer than so
# many is not judged by them.
SENTENCE_SAMPLE, LONG_SENTENCE, FEWEST_SENTENCES = 4, 60, 8
_SENTENCE_END = re.compile(rb"(?<=[.!?]) ")


def measure_batch(contract: Table, batch: pa.RecordBatch, known: Mapping[str, IntArray]) -> pd.DataFrame:
    """The measured frame of some rows, without what needs a look at other rows.

    Args:
        contract: The table.
        batch: Rows in contract types.
        known: The sorted ids of each table that could be read, by table name.
    """
    columns: dict[str, Any] = {}
    for column in contract.columns:
        values = batch.column(column.name)
        columns[column.name] = _plain(column, values)
        if column.is_vector:
            present_N = values.is_valid().to_numpy(zero_copy_only=False)
            width_N = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.float64)
            # NaN where there is no vector: an expectation does not look at missing values.
            columns[f"{column.name}.width"] = np.where(present_N, width_N, np.nan)
            columns[f"{column.name}.num_bad"] = np.where(present_N, _num_bad(values), np.nan)
        if column.one_of:
            columns[f"{column.name}.place"] = _places(column, values)
        if column.is_prose:
            columns |= _measure_prose(column.name, values)
        if column.refers_to is not None:
            # A table that cannot be read has failed by itself; its absence says nothing of this one.
            columns[f"{column.name}.known"] = _known(values, known.get(column.refers_to))
    return pd.DataFrame(columns)


def _plain(column: Column, values: pa.Array) -> Any:
    if pa.types.is_integer(column.type):
        # Int64 keeps whole numbers whole beside nulls; plain int64 is faster where there are none.
        return values.to_pandas(
            types_mapper={column.type: pd.Int64Dtype()}.get if values.null_count else None
        )
    if pa.types.is_timestamp(column.type):
        return values.to_pandas()
    if pa.types.is_floating(column.type):
        number_N = values.to_numpy(zero_copy_only=False).astype(np.float64)
        # pandas takes NaN for null, and infinity passes where there is no maximum; this is below any minimum.
        present_N = values.is_valid().to_numpy(zero_copy_only=False)
        return np.where(present_N & ~np.isfinite(number_N), -np.inf, number_N)
    return np.where(values.is_valid().to_numpy(zero_copy_only=False), 1.0, np.nan)


def _known(values: pa.Array, ids: IntArray | None) -> npt.NDArray[np.bool_]:
    if ids is None:
        return np.ones(len(values), bool)
    null_N = values.is_null().to_numpy(zero_copy_only=False)  # nulls fail by themselves
    id_N = values.fill_null(0).to_numpy(zero_copy_only=False)
    place_N = np.searchsorted(ids, id_N).clip(max=max(len(ids) - 1, 0))
    found_N = ids[place_N] == id_N if len(ids) else np.zeros(len(values), bool)
    return np.asarray(null_N | found_N)


def _num_bad(values: pa.Array) -> IntArray:
    """How many numbers of each row's list are null, NaN or infinite."""
    numbers = values.flatten().to_numpy(zero_copy_only=False)
    row_of_number = pc.list_parent_indices(values).to_numpy()
    return np.bincount(row_of_number[~np.isfinite(numbers)], minlength=len(values))


def _places(column: Column, values: pa.Array) -> npt.NDArray[np.float64]:
    """The place of each word among those that the column may hold: -1 for another one, NaN for null."""
    place_N = pc.fill_null(pc.index_in(values, value_set=pa.array(column.one_of, values.type)), -1)
    return np.where(values.is_valid().to_numpy(zero_copy_only=False), place_N.to_numpy(), np.nan)


def _measure_prose(name: str, values: pa.Array) -> dict[str, Any]:
    """What can be said of texts one by one; NaN where there is none."""
    rows = [_measure_text(value) for value in values.cast(pa.large_binary()).to_pylist()]
    blank, num_bad, digest, sentences = zip(*rows, strict=True) if rows else ((), (), (), ())
    held = np.empty(len(sentences), object)
    held[:] = sentences
    return {
        f"{name}.blank": np.array(blank, object),
        f"{name}.num_bad": np.array(num_bad, np.float64),
        f"{name}.digest": np.array(digest, np.uint64),
        f"{name}.sentences": held,
    }


def _measure_text(value: bytes | None) -> tuple[bool | None, float, int, npt.NDArray[np.uint64]]:
    if value is None:
        return None, np.nan, 0, np.zeros(0, np.uint64)
    words = value.split()
    # Word by word, as spaces do not make a text another one. 64 bits: 1 in 37 million for a million texts.
    text = b" ".join(words)
    num_bad = value.count(b"\0")
    try:
        value.decode()
    except UnicodeDecodeError:
        num_bad += value.decode(errors="replace").count("\ufffd")
    long = [sentence for sentence in _SENTENCE_END.split(text) if len(sentence) >= LONG_SENTENCE]
    digests = np.array([_digest(sentence) for sentence in long], np.uint64)
    # By what they say, so that the same ones are looked at everywhere.
    return not words, num_bad, _digest(text), digests[digests % SENTENCE_SAMPLE == 0]


def _digest(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def mark_repeats(frame: pd.DataFrame, name: str, apart_by: str) -> None:
    """Says of each text whether an earlier row has it too, in another split and in the same one."""
    present_N = frame[name].notna() & (frame[f"{name}.blank"] == False)  # noqa: E712
    digest = frame.pop(f"{name}.digest")
    split = frame[f"{apart_by}.place"]
    frame[f"{name}.shared"] = _shared(frame.pop(f"{name}.sentences").tolist(), split.to_numpy())
    first_N = split.groupby(digest).transform("first")
    seen_N = pd.DataFrame({"digest": digest, "split": split}).duplicated().to_numpy()
    frame[f"{name}.elsewhere"] = (present_N & split.notna() & (split != first_N)).to_numpy(bool)
    frame[f"{name}.again"] = (present_N & seen_N).to_numpy(bool)


def _shared(sentences_N: list[npt.NDArray[np.uint64]], split_N: npt.NDArray[np.float64]) -> FloatArray:
    """The share of each text's sentences that stand in another split, too; NaN where there are too few."""
    count_N = np.array([len(sentences) for sentences in sentences_N])
    row_S = np.repeat(np.arange(len(count_N)), count_N)
    bit_S = 1 << np.nan_to_num(split_N).astype(np.int64)[row_S].clip(0)
    _, kind_S = np.unique(np.concatenate(sentences_N), return_inverse=True)
    bits_K = np.zeros(kind_S.max(initial=-1) + 1, np.int64)
    np.bitwise_or.at(bits_K, kind_S, bit_S)
    elsewhere_N = np.bincount(row_S, bits_K[kind_S] != bit_S, len(count_N))
    return np.where(count_N >= FEWEST_SENTENCES, elsewhere_N / np.maximum(count_N, 1), np.nan)


def in_order(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether each row is not less than the one before it; rows with a null pass, another check has them."""
    after_N = np.zeros(len(frame), bool)
    equal_N = np.ones(len(frame), bool)
    for name in frame.columns:
        now = frame[name]
        # A first row without predecessor would turn whole numbers into floats, which merge ids above 2^53.
        before = now.shift(1, fill_value=now.iloc[0])
        unknown_N = (now.isna() | before.isna()).to_numpy()
        after_N |= equal_N & ((now > before).fillna(False).to_numpy(bool) | unknown_N)
        equal_N &= (now == before).fillna(False).to_numpy(bool)
    return after_N | equal_N
