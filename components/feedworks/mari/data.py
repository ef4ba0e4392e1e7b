"""MaRI (arXiv 2602.23105): rows of a ranking data folder as the tensors that a ranker takes.

Shape legend: B rows, U and I fields of user and item, L places of the history.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from feedworks.contracts.files import group_rows, read_batches
from feedworks.contracts.ranking import LABEL, Field, RankingFields, read_fields
from feedworks.errors import DataError
from feedworks.mari.schema import ModelInput, RankerSchema
from feedworks.training.seed import numpy_generator

Split = Literal["train", "valid", "test"]
IntArray = npt.NDArray[np.int64]
INPUTS = ("user", "item", "history")
# A larger split is mapped instead of held.
IN_MEMORY_BYTES = 1 << 30
BLOCK_ROWS = 1 << 18


class Rows(NamedTuple):
    """Candidates with their labels.

    Attributes:
        label_B: float32, 0 or 1.
        user_BU: int64 ids of the user's and the request's fields.
        item_BI: int64 ids of the item's fields.
        history_BL: int64, ids of the item's first field plus 1, 0 for an empty place; None without a history.
    """

    label_B: Tensor
    user_BU: Tensor
    item_BI: Tensor
    history_BL: Tensor | None

    def inputs(self, schema: RankerSchema) -> list[Tensor]:
        """What a model of this schema takes, in its order.

        Raises:
            DataError: the schema has an input that a ranking data folder does not give.
        """
        given = dict(zip(INPUTS, (self.user_BU, self.item_BI, self.history_BL), strict=True))
        tensors = [given.get(each.name) for each in schema.inputs]
        if lacking := [e.name for e, t in zip(schema.inputs, tensors, strict=True) if t is None]:
            raise DataError(f"the data have no input {lacking[0]!r}; they give {', '.join(INPUTS)}")
        return [tensor for tensor in tensors if tensor is not None]

    def chosen(self, rows: IntArray | slice) -> Rows:
        """Some of the rows."""
        at = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        history = None if self.history_BL is None else self.history_BL[at]
        return Rows(self.label_B[at], self.user_BU[at], self.item_BI[at], history)

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.label_B)


class ShuffledBatches(Sequence[Rows]):
    """The batches of one epoch in an order of its own, each built when it is asked for."""

    def __init__(self, rows: Rows, batch_size: int, order: IntArray) -> None:
        self._rows, self._batch_size, self._order = rows, batch_size, order

    def __len__(self) -> int:
        """Number of batches; the last may be smaller."""
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index: int) -> Rows:  # type: ignore[override]
        """The batch with this number; slices are not asked for."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self._batch_size
        return self._rows.chosen(self._order[start : start + self._batch_size])


def schema_of(fields: RankingFields, *, history: bool, max_candidates: int = 10_000) -> RankerSchema:
    """Inputs `user`, `item` and, if asked for, `history`, with their fields and sizes.

    Args:
        fields: of the data folder.
        history: whether the model takes the user's history, if the folder has one.
        max_candidates: of one request.

    Raises:
        DataError: the history is not of the item's first field.
    """
    inputs = [_input("user", "user", fields.of_user), _input("item", "item", fields.of_item)]
    if history and fields.history:
        first = fields.of_item[0].name
        if other := [field.name for field in fields.history if field.history_of != first]:
            raise DataError(f"field {other[0]}: a history must be of the item's first field {first}")
        inputs.append(_input("history", "user", fields.history))
    return RankerSchema(inputs=tuple(inputs), max_candidates=max_candidates)


def read_rows(folder: Path, split: Split, scratch: Path | None = None) -> Rows:
    """Read one split of a ranking data folder, which must have passed the gate.

    A split of more than `IN_MEMORY_BYTES` lies in temporary files that are mapped, 8 bytes for each id, and
    takes 4 bytes of memory for each row; of the table one batch is held.

    Args:
        folder: the data folder.
        split: which table.
        scratch: where the temporary files go, which have no names and end with the rows; the system's own
            place without it.

    Raises:
        DataError: a file is missing or cannot be read.
        OSError: there is no room for the temporary files.
    """
    fields = read_fields(folder)
    contract = next(table for table in fields.tables() if table.name == split)
    kinds = (fields.of_user, fields.of_item, fields.history)
    rows = _room(sum(group_rows(contract, folder)), [len(kind) for kind in kinds], scratch)
    begin = 0
    for batch in read_batches(contract, folder, contract.schema.names):
        label_B = torch.from_numpy(batch[LABEL].to_numpy().astype(np.float32))
        ids = [_ids(batch, kind) if kind else None for kind in kinds]
        begin = _put(rows, Rows(label_B, ids[0], ids[1], ids[2]), begin)  # type: ignore[arg-type]
    return rows


def without_contradictions(rows: Rows, scratch: Path | None = None) -> Rows:
    """Drop the negative rows whose user and item make a positive row elsewhere, in another context.

    Where negatives are drawn at random from what the user never took, such a row only says that the draw went
    wrong. Where they were shown and passed over they say more: keep them. User and item are the first fields
    of their sides. Held in memory are some 40 bytes for each row; see `read_rows` for `scratch`.
    """
    user_B, item_B = rows.user_BU[:, 0].numpy(), rows.item_BI[:, 0].numpy()
    pair_B = user_B * (item_B.max() + 1) + item_B
    positive_B = rows.label_B.numpy() > 0
    taken_B = np.isin(pair_B, pair_B[positive_B])
    kept = np.flatnonzero(positive_B | ~taken_B)
    widths = [0 if ids is None else ids.shape[1] for ids in rows[1:]]
    chosen, begin = _room(len(kept), widths, scratch), 0
    while begin < len(kept):
        begin = _put(chosen, rows.chosen(kept[begin : begin + BLOCK_ROWS]), begin)
    return chosen


def shuffled(rows: Rows, batch_size: int, seed: int) -> Callable[[int], ShuffledBatches]:
    """Batches of each epoch, for `feedworks.training.loop.fit`."""

    def batches(epoch: int) -> ShuffledBatches:
        order = numpy_generator(seed, "rows", epoch).permutation(rows.num_rows)
        return ShuffledBatches(rows, batch_size, order)

    return batches


def _input(name: str, side: Literal["user", "item"], fields: Sequence[Field]) -> ModelInput:
    return ModelInput(
        name=name,
        side=side,
        dtype="int64",
        shape=(len(fields),),
        fields=tuple(field.name for field in fields),
        sizes=tuple(field.size for field in fields),
    )


def _room(num_rows: int, widths: Sequence[int], scratch: Path | None) -> Rows:
    """Rows to be filled; the history is None where its width is 0."""
    mapped = num_rows * sum(widths) * 8 > IN_MEMORY_BYTES
    ids: list[Tensor] = []
    for width in widths:
        if not mapped or not num_rows * width:
            ids.append(torch.empty(num_rows, width, dtype=torch.int64))
            continue
        with tempfile.TemporaryFile(dir=scratch) as file:
            file.truncate(num_rows * width * 8)
            ids.append(torch.from_numpy(np.memmap(file, np.int64, "r+", shape=(num_rows, width))))
    history = ids[2] if widths[2] else None
    return Rows(torch.empty(num_rows, dtype=torch.float32), ids[0], ids[1], history)


def _put(rows: Rows, part: Rows, begin: int) -> int:
    """Copy a part into rows from `begin` on, and return where it ends."""
    end = begin + part.num_rows
    for there, here in zip(rows, part, strict=True):
        if there is not None and here is not None:
            there[begin:end] = here
    return end


def _ids(table: pa.RecordBatch, fields: Sequence[Field]) -> Tensor:
    return torch.from_numpy(np.stack([table[field.name].to_numpy() for field in fields], axis=1))
