"""KSA (arXiv 2604.24432): batches of token rows, each a function of (seed, step) alone.

A source names the rows of every step of a run: a resumed run asks for the steps that are left and builds
none of those before. Passes over the text are shuffled anew and cut at another place.
Shape legend: B rows, T tokens of a row, N tokens of the text, R rows of a pass or a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feedworks.errors import ConfigError, DataError
from feedworks.ksa.losses import IGNORED
from feedworks.training.seed import numpy_generator

IntArray = npt.NDArray[np.int64]


class TextBatch(NamedTuple):
    """Rows of a step of training.

    Attributes:
        input_ids_BT: token ids.
        label_BT: the same ids where they are to be predicted, -100 elsewhere.
        document_BT: numbers of packed documents, each from a chunk's border on; None: one in each row.
        step: steps of the run before this one. It rides with the batch because a loss sees nothing else: what
            depends on it (lambda) is then the same in every process and after a resume.
    """

    input_ids_BT: Tensor
    label_BT: Tensor
    document_BT: Tensor | None = None
    step: int = 0


class Source(Protocol):
    """Where training rows come from."""

    def batch(self, step: int, size: int) -> TextBatch:
        """Return the rows of a step of batches of this size; equal arguments give equal rows."""


class Steps(Sequence[TextBatch]):
    """Batches of some steps in a row, each built when it is asked for."""

    def __init__(self, source: Source, batch_size: int, first: int, num: int) -> None:
        self._source, self._batch_size, self._first, self._num = source, batch_size, first, num

    def __len__(self) -> int:
        return self._num

    @overload
    def __getitem__(self, index: int) -> TextBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[TextBatch]: ...
    def __getitem__(self, index: int | slice) -> TextBatch | list[TextBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._num))]
        if not 0 <= index < self._num:
            raise IndexError(index)
        step = self._first + index
        return self._source.batch(step, self._batch_size)._replace(step=step)


def epochs(source: Source, batch_size: int, steps_per_epoch: int) -> Callable[[int], Steps]:
    """Return what `feedworks.training.loop.fit` takes for `batches`."""
    return lambda epoch: Steps(source, batch_size, epoch * steps_per_epoch, steps_per_epoch)


class Later:
    """The rows of a source from a step on."""

    def __init__(self, source: Source, first: int) -> None:
        self._source, self._first = source, first

    def batch(self, step: int, size: int) -> TextBatch:
        """See `Source`."""
        return self._source.batch(self._first + step, size)


class Windows:
    """Any windows of a text, whose documents follow each other and are read across their borders.

    A pass takes windows that do not overlap, from a place drawn for the pass, in an order of its own.

    Args:
        token_N: ids, an array or a memory map.
        seq_len: T.
        seed: of the run.

    Raises:
        DataError: the text is shorter than a window.
    """

    def __init__(self, token_N: npt.NDArray[Any], seq_len: int, seed: int) -> None:
        if len(token_N) < seq_len:
            raise DataError(
                f"the training text has {len(token_N):,} tokens, less than a row of {seq_len}; "
                "bring more text or lower seq_len"
            )
        self._token_N, self._seq_len, self._seed = token_N, seq_len, seed
        # One window less than would fit leaves room for another place in each pass.
        self.rows_per_pass = max(1, len(token_N) // seq_len - 1)
        self._begins = lru_cache(maxsize=2)(self._drawn)

    def batch(self, step: int, size: int) -> TextBatch:
        """See `Source`."""
        begins = [
            begin
            for number, places in _by_pass(step * size, size, self.rows_per_pass)
            for begin in self._begins(number)[places]
        ]
        rows_BT = np.stack([self._token_N[begin : begin + self._seq_len] for begin in begins]).astype(
            np.int64
        )
        input_ids_BT = torch.from_numpy(rows_BT)
        return TextBatch(input_ids_BT, input_ids_BT)

    def _drawn(self, number: int) -> IntArray:
        rng = numpy_generator(self._seed, "windows", number)
        phase = int(rng.integers(len(self._token_N) - self.rows_per_pass * self._seq_len + 1))
        return phase + rng.permutation(self.rows_per_pass) * self._seq_len


class Packed:
    """Documents one after the other, each from a chunk's border on and read by itself alone.

    A pass takes the documents in an order of its own, fills each up to whole chunks and cuts the whole into
    rows; a document that a row's end cuts goes on in the next row without what came before. Fillings and the
    first token of a document have no label.

    Args:
        token_N: ids, an array or a memory map.
        starts: places where documents begin, and N.
        seq_len: T, whole chunks.
        chunk: k.
        seed: of the run.

    Raises:
        ConfigError: a row is not of whole chunks.
        DataError: all documents together do not fill a row.
    """

    def __init__(
        self, token_N: npt.NDArray[Any], starts: npt.ArrayLike, seq_len: int, chunk: int, seed: int
    ) -> None:
        if seq_len % chunk:
            raise ConfigError(f"seq_len={seq_len}: packed rows need a multiple of chunk={chunk}")
        bounds = np.asarray(starts, dtype=np.int64)
        kept = np.flatnonzero(np.diff(bounds) > 0)
        self._first, self._length = bounds[kept], np.diff(bounds)[kept]
        self._filled = -(-self._length // chunk) * chunk
        self._token_N, self._seq_len, self._seed = token_N, seq_len, seed
        self.rows_per_pass = int(self._filled.sum()) // seq_len
        if not self.rows_per_pass:
            raise DataError(
                f"the training documents have {int(self._length.sum()):,} tokens, less than a row of "
                f"{seq_len}; bring more text or lower seq_len"
            )
        self._layout = lru_cache(maxsize=2)(self._drawn)

    def batch(self, step: int, size: int) -> TextBatch:
        """See `Source`."""
        ids_BT, label_BT, document_BT = (np.zeros((size, self._seq_len), np.int64) for _ in range(3))
        row = 0
        for number, places in _by_pass(step * size, size, self.rows_per_pass):
            order, ends, place_R = self._layout(number)
            for place in place_R[places]:
                self._fill(
                    int(place) * self._seq_len, order, ends, ids_BT[row], label_BT[row], document_BT[row]
                )
                row += 1
        packed = torch.from_numpy(document_BT) if document_BT.any() else None
        return TextBatch(torch.from_numpy(ids_BT), torch.from_numpy(label_BT), packed)

    def _drawn(self, number: int) -> tuple[IntArray, IntArray, IntArray]:
        """Documents of a pass in their order, where each ends, and the order of the rows."""
        rng = numpy_generator(self._seed, "packed", number)
        order = rng.permutation(len(self._length))
        return order, self._filled[order].cumsum(), rng.permutation(self.rows_per_pass)

    def _fill(
        self,
        begin: int,
        order: IntArray,
        ends: IntArray,
        ids_T: IntArray,
        label_T: IntArray,
        document_T: IntArray,
    ) -> None:
        label_T[:] = IGNORED
        at, number = 0, 0
        for place in range(int(np.searchsorted(ends, begin, side="right")), len(order)):
            document = order[place]
            skipped = begin + at - (int(ends[place]) - int(self._filled[document]))
            room = min(self._seq_len - at, int(self._filled[document]) - skipped)
            count = min(room, max(0, int(self._length[document]) - skipped))
            first = int(self._first[document]) + skipped
            ids_T[at : at + count] = self._token_N[first : first + count]
            label_T[at + 1 : at + count] = ids_T[at + 1 : at + count]
            document_T[at : at + room] = number
            at, number = at + room, number + 1
            if at == self._seq_len:
                return


class Table:
    """Rows that are there, such as questions with their answers; each pass has an order of its own."""

    def __init__(self, input_ids_RT: Tensor, label_RT: Tensor, seed: int) -> None:
        if not len(input_ids_RT):
            raise DataError("a table of training rows is empty; make some rows or leave it out")
        self._input_ids_RT, self._label_RT, self._seed = input_ids_RT, label_RT, seed

    def batch(self, step: int, size: int) -> TextBatch:
        """See `Source`."""
        num_rows = len(self._input_ids_RT)
        chosen = [
            numpy_generator(self._seed, "table", number).permutation(num_rows)[places]
            for number, places in _by_pass(step * size, size, num_rows)
        ]
        rows = torch.from_numpy(np.concatenate(chosen))
        return TextBatch(self._input_ids_RT[rows], self._label_RT[rows])


class Drawn:
    """Rows that a function makes for each step: (step, size) -> ids and labels (B, T), then anything."""

    def __init__(self, draw: Callable[[int, int], Sequence[Any]]) -> None:
        self._draw = draw

    def batch(self, step: int, size: int) -> TextBatch:
        """See `Source`."""
        ids_BT, label_BT, *_ = self._draw(step, size)
        return TextBatch(ids_BT, label_BT)


def _by_pass(first: int, num: int, rows_per_pass: int) -> list[tuple[int, slice]]:
    """Cut consecutive row numbers of a run into passes: (pass, places in it)."""
    found = []
    while num:
        number, place = divmod(first, rows_per_pass)
        count = min(num, rows_per_pass - place)
        found.append((number, slice(place, place + count)))
        first, num = first + count, num - count
    return found
