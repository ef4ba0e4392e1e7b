"""OCARM (arXiv 2604.25839): training sets on disk to rows of tensors, and the table of teacher vectors.

Student and controls are given the folder of observables and the folder of vectors; only `read_content` opens
content. Shape legend: B rows, H horizons, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feedworks.contracts.files import read_file
from feedworks.contracts.retention import CONTENT_FILE, OBSERVABLES_FILE, SPLITS, label_of
from feedworks.errors import DataError, ModelError
from feedworks.ocarm.columns import IntArray
from feedworks.ocarm.config import Architecture, OcarmConfig, Sizes
from feedworks.ocarm.data import Content, ItemTable, Observable, content, labels, observables
from feedworks.storage import atomic_folder
from feedworks.training.checkpoint import read_tensors, write_tensors
from feedworks.training.seed import numpy_generator

VECTORS_FILE = "teacher_vectors.parquet"
START_FILE = "start.safetensors"
# The window's times stand beside the samples; the teacher needs them to cut content into days.
WINDOW = ("content_start", "label_start")


class Rows(NamedTuple):
    """Samples of a split: who, what is known of them at bid time, and how often they came back."""

    sample_id_B: IntArray
    user_id_B: IntArray
    observable: Observable
    label_BH: Tensor

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.sample_id_B)


class Inputs(NamedTuple):
    """A training set: its catalogue, the architecture that it asks for, and the rows of each split."""

    items: ItemTable
    architecture: Architecture
    rows: dict[str, Rows]


class Vectors(NamedTuple):
    """The table of the teacher: e_c `(B, H, D)` and logits `(B, H)` of some samples."""

    sample_id_B: IntArray
    vector_BHD: Tensor
    logit_BH: Tensor

    def of(self, sample_id_B: IntArray) -> Vectors:
        """The rows of these samples, in their order; NaN for those that the table lacks."""
        order = np.argsort(self.sample_id_B)
        place_B = np.searchsorted(self.sample_id_B[order], sample_id_B).clip(max=max(len(order) - 1, 0))
        row_B = order[place_B] if len(order) else place_B
        known_B = torch.from_numpy(self.sample_id_B[row_B] == sample_id_B)
        vector_BHD = self.vector_BHD[row_B].masked_fill(~known_B[:, None, None], torch.nan)
        return Vectors(
            sample_id_B, vector_BHD, self.logit_BH[row_B].masked_fill(~known_B[:, None], torch.nan)
        )


class Batch(tuple[Any, ...]):
    """Tensors with the rows first; made from its parts, as the training loop makes what it cuts."""

    __slots__ = ()

    def __new__(cls, *parts: Any) -> Self:
        """Make a batch of tensors."""
        return super().__new__(cls, parts)


class Shuffled(Sequence[Batch]):
    """The batches of one epoch, gathered when they are asked for."""

    def __init__(self, tensors: Sequence[Tensor], batch_size: int, order_B: IntArray) -> None:
        self._tensors, self._size = tensors, batch_size
        self._order_B = torch.from_numpy(order_B)

    def __len__(self) -> int:
        """Number of batches; the last one may be smaller."""
        return -(-len(self._order_B) // self._size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        """Return one batch, or several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        chosen = self._order_B[index * self._size : (index + 1) * self._size]
        return Batch(*(tensor[chosen] for tensor in self._tensors))


def shuffled(tensors: Sequence[Tensor], batch_size: int, seed: int) -> Callable[[int], Shuffled]:
    """Batches of each epoch, for `feedworks.training.loop.fit`; tensors are aligned by their rows."""

    def batches(epoch: int) -> Shuffled:
        return Shuffled(
            tensors, batch_size, numpy_generator(seed, "rows", epoch).permutation(len(tensors[0]))
        )

    return batches


def read_inputs(folder: Path, cfg: OcarmConfig) -> Inputs:
    """Read the folder of observables.

    Raises:
        DataError: a file is missing or damaged, a column is missing, or a split has no rows.
    """
    table = read_file(folder / OBSERVABLES_FILE)
    items = ItemTable.read(folder)
    sizes = Sizes(num_items=len(items.item_id_I) + 1, vector_width=items.vector_IV.shape[1])
    architecture = Architecture(model=cfg.model, samples=cfg.samples, sizes=sizes)
    return Inputs(items, architecture, rows_of(table, items, architecture))


def rows_of(table: pa.Table, items: ItemTable, architecture: Architecture) -> dict[str, Rows]:
    """Tensors of every split.

    Raises:
        DataError: a column is missing or a split has no rows.
    """
    columns = {name: table[name] for name in table.column_names}
    observable = _shortened(observables(columns, items, architecture))
    label_BH = labels(columns, architecture.samples.horizons)
    split_B = table["split"].to_numpy()
    found = {}
    for split in SPLITS:
        row_B = np.flatnonzero(split_B == split)
        if not len(row_B):
            raise DataError(f"split {split} of the training set has no rows; make it again with more samples")
        found[split] = Rows(
            table["sample_id"].to_numpy()[row_B],
            table["user_id"].to_numpy()[row_B],
            Observable(*(tensor[row_B] for tensor in observable)),
            label_BH[row_B],
        )
    return found


def read_content(folder: Path, observables_folder: Path, inputs: Inputs) -> dict[str, Content]:
    """Read what only the teacher may see, aligned with the rows of each split.

    Args:
        folder: of the content.
        observables_folder: of the samples' windows.
        inputs: what `read_inputs` returned.

    Raises:
        DataError: a file is missing or damaged, or a sample has no row of content.
    """
    hidden = read_file(folder / CONTENT_FILE)
    windows = read_file(observables_folder / OBSERVABLES_FILE, ["sample_id", *WINDOW])
    found = {}
    for split, rows in inputs.rows.items():
        columns: dict[str, Any] = {}
        for table in (windows, hidden):
            place_B = _places(table["sample_id"].to_numpy(), rows.sample_id_B)
            part = table.take(place_B)
            columns |= {name: part[name] for name in part.column_names}
        found[split] = content(columns, inputs.items, inputs.architecture)
    return found


def write_vectors(folder: Path, found: Vectors, start: dict[str, Tensor], horizons: tuple[int, ...]) -> None:
    """Write the table of teacher vectors, and the weights that a student may start from, as a new folder.

    Raises:
        OSError: the folder cannot be written.
    """
    columns: dict[str, Any] = {"sample_id": found.sample_id_B}
    for place, days in enumerate(horizons):
        columns[f"e_{label_of(days)}"] = _lists(found.vector_BHD[:, place])
        columns[f"logit_{label_of(days)}"] = found.logit_BH[:, place].numpy()
    with atomic_folder(folder) as new:
        pq.write_table(pa.table(columns), new / VECTORS_FILE, compression="zstd")
        write_tensors(new / START_FILE, start)


def read_vectors(folder: Path, horizons: tuple[int, ...]) -> tuple[Vectors, dict[str, Tensor]]:
    """Read what `write_vectors` wrote.

    Raises:
        DataError: the table is missing or damaged, or was made for other horizons.
        ModelError: the weights are missing or damaged.
    """
    table = read_file(folder / VECTORS_FILE)
    lacking = [label_of(d) for d in horizons if f"e_{label_of(d)}" not in table.column_names]
    if lacking:
        raise DataError(f"{folder / VECTORS_FILE} has no vectors for {', '.join(lacking)}; export them again")
    vector_BHD = torch.stack([_vectors(table[f"e_{label_of(days)}"]) for days in horizons], dim=1)
    logits = [torch.from_numpy(table[f"logit_{label_of(d)}"].to_numpy().copy()) for d in horizons]
    return Vectors(table["sample_id"].to_numpy(), vector_BHD, torch.stack(logits, dim=1)), read_tensors(
        folder / START_FILE
    )


def _shortened(observable: Observable) -> Observable:
    """Without the places of the sequences that are padding in every row; a query cannot see them anyway."""
    longest, most = int(observable.history_length_B.max()), int(observable.return_length_B.max())
    return observable._replace(
        history_code_BT3=observable.history_code_BT3[:, :longest],
        history_number_BT3=observable.history_number_BT3[:, :longest],
        return_code_BA1=observable.return_code_BA1[:, :most],
        return_number_BA2=observable.return_number_BA2[:, :most],
    )


def _places(have_B: IntArray, wanted_B: IntArray) -> IntArray:
    order = np.argsort(have_B)
    place_B: IntArray = order[np.searchsorted(have_B, wanted_B, sorter=order).clip(max=len(order) - 1)]
    if len(lost := np.flatnonzero(have_B[place_B] != wanted_B)):
        raise DataError(f"sample {wanted_B[lost[0]]} has no row of content; build the training set again")
    return place_B


def _lists(vector_BD: Tensor) -> pa.Array:
    offsets = np.arange(len(vector_BD) + 1, dtype=np.int32) * vector_BD.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(vector_BD.float().numpy().reshape(-1)))


def _vectors(column: pa.ChunkedArray) -> Tensor:
    flat = column.combine_chunks().flatten().to_numpy().astype(np.float32)
    if len(flat) % max(len(column), 1):
        raise ModelError("teacher vectors differ in width; export them again")
    return torch.from_numpy(flat.reshape(len(column), -1))
