"""The text rows of summary_attention in PyTorch operators: one key head of one document, block by block.

A block of text rows reads a stretch of summaries and a stretch of text, in tiles of columns: one product of
matrices each, masked at the edges of the stretches alone. Weights are powers of two of scores that have
log2 e in them already.

Shape letters: Q query heads of one key head, T text rows, S summary rows, D head width, R rows of a block
(its text rows for each of the Q heads), N columns of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels import onednn
from feedworks_kernels.summary_attention.pattern import Pattern

LOG2_E = math.log2(math.e)
# Rows: products of less than 128 are slower, more than 256 waste columns at the edges. Columns: a tile of 256
# x 2048 weights takes 2 MB and is used at once.
_ROWS = 256
_COLUMNS = 2048


class Keys(NamedTuple):
    """Keys and values of one kind: text or summaries."""

    key_TD: Tensor
    value_TD: Tensor


class Start(NamedTuple):
    """Rows of a document of which only the later part is there: first of the queries, first of the keys."""

    query: int = 0
    key: int = 0


FROM_THE_FIRST = Start()


class Tile(NamedTuple):
    """Columns [first, last) of one kind, and the mask's parts: columns (from, to) and the bias there."""

    is_text: bool
    first: int
    last: int
    edges: list[tuple[int, int, Tensor]]


class Head:
    """One key head and its query heads, over one document.

    Args:
        query_QTD: text queries, times scale * log2 e.
        text: text keys and values.
        summary: summary keys and values.
        pattern: its `first_chunk_BC` is not looked at.
        start: row of the document that the first query is, and the first text key.
    """

    def __init__(
        self, query_QTD: Tensor, text: Keys, summary: Keys, pattern: Pattern, start: Start = FROM_THE_FIRST
    ) -> None:
        self.query_QTD, self.text, self.summary, self.pattern = query_QTD, text, summary, pattern
        self._start = start
        self._biases: dict[tuple[str | int, ...], Tensor] = {}

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Cut the text into blocks of rows, of whole chunks where a chunk is small."""
        num_heads, num_text, _ = self.query_QTD.shape
        rows = max(32, _ROWS // num_heads)
        rows = max(rows // self.pattern.chunk * self.pattern.chunk, 0) or rows
        first, end = self._start.query, self._start.query + num_text
        for start in range(first, end, rows):
            yield start, min(end, start + rows)

    def attend(self, start: int, stop: int, shifted: bool) -> tuple[Tensor, Tensor]:
        """Compute the outputs (Q, R / Q, D) and base-2 log-sum-exps (Q, R / Q) of the rows [start, stop).

        Args:
            start: first row.
            stop: the row after the last.
            shifted: subtract each row's largest score first. All scores of the block are held then.
        """
        query_RD = self._block(self.query_QTD, start, stop)
        tiles = list(self._tiles(start, stop))
        scores = (self._score(query_RD, tile) for tile in tiles)
        peak_R1: Tensor | None = None
        if shifted:
            held = list(scores)
            peak_R1 = torch.stack([score_RN.amax(dim=1, keepdim=True) for score_RN in held]).amax(dim=0)
            scores = (score_RN.sub_(peak_R1) for score_RN in held)
        sum_R1: Tensor | None = None
        out_RD: Tensor | None = None
        for tile, score_RN in zip(tiles, scores, strict=True):
            weight_RN = score_RN.exp2_()
            of_tile_R1 = weight_RN.sum(dim=1, keepdim=True)
            of_tile_RD = product(weight_RN, self._keys(tile).value_TD.T)
            sum_R1 = of_tile_R1 if sum_R1 is None else sum_R1.add_(of_tile_R1)
            out_RD = of_tile_RD if out_RD is None else out_RD.add_(of_tile_RD)
        assert sum_R1 is not None
        assert out_RD is not None
        lse_R1 = sum_R1.log2() if peak_R1 is None else sum_R1.log2().add_(peak_R1)
        shape = (len(self.query_QTD), stop - start, -1)
        return out_RD.div_(sum_R1).view(shape), lse_R1.view(shape[:2])

    def differentiate(
        self, start: int, stop: int, grad_QTD: Tensor, delta_QT: Tensor, lse_QT: Tensor, into: HeadGradient
    ) -> Tensor:
        """Add the rows' share to `into` and return their queries' gradient (Q, R / Q, D) over the scale.

        Args:
            start: first row.
            stop: the row after the last.
            grad_QTD: gradient of the outputs.
            delta_QT: sums of grad * out over the width.
            lse_QT: base-2 log-sum-exps.
            into: sums over the blocks.
        """
        query_RD, grad_RD = self._block(self.query_QTD, start, stop), self._block(grad_QTD, start, stop)
        query_DR, grad_DR = query_RD.T.contiguous(), grad_RD.T.contiguous()
        lse_R1, delta_R1 = (x[:, start:stop].reshape(-1, 1) for x in (lse_QT, delta_QT))
        grad_query_RD = torch.zeros_like(query_RD)
        for tile in self._tiles(start, stop):
            columns, keys = slice(tile.first, tile.last), self._keys(tile)
            weight_RN = self._score(query_RD, tile).sub_(lse_R1).exp2_()
            grad_score_RN = product(grad_RD, keys.value_TD).sub_(delta_R1).mul_(weight_RN)
            sums = into.text if tile.is_text else into.summary
            sums.value_TD[:, columns] += product(grad_DR, weight_RN.T)
            sums.key_TD[:, columns] += product(query_DR, grad_score_RN.T)
            grad_query_RD += product(grad_score_RN, keys.key_TD.T)
        return grad_query_RD.view(len(self.query_QTD), stop - start, -1)

    def _block(self, rows_QTD: Tensor, start: int, stop: int) -> Tensor:
        first = self._start.query
        return rows_QTD[:, start - first : stop - first].reshape(-1, rows_QTD.shape[2])

    def _keys(self, tile: Tile) -> Keys:
        """Return keys and values of a tile's columns."""
        kept, first = (self.text, self._start.key) if tile.is_text else (self.summary, 0)
        return Keys(*(x[tile.first - first : tile.last - first] for x in kept))

    def _score(self, query_RD: Tensor, tile: Tile) -> Tensor:
        score_RN = product(query_RD, self._keys(tile).key_TD)
        for first, last, bias in tile.edges:
            score_RN.view(len(self.query_QTD), -1, tile.last - tile.first)[:, :, first:last] += bias
        return score_RN

    def _tiles(self, start: int, stop: int) -> Iterator[Tile]:
        all_read, some_read = self.pattern.summary_keys(start, stop)
        for first in range(0, some_read, _COLUMNS):
            last = min(some_read, first + _COLUMNS)
            edges = []
            if last > all_read:
                begin = max(first, all_read)
                edges.append((begin - first, last - first, self._bias("summary", start, stop, begin, last)))
            yield Tile(False, first, last, edges)
        begin_text, end_text = self.pattern.text_keys(start, stop)
        begin_full, end_full = self.pattern.text_keys_unmasked(start, stop)
        for first in range(begin_text, end_text, _COLUMNS):
            last = min(end_text, first + _COLUMNS)
            edges = []
            if first < begin_full:
                end = min(last, begin_full)
                edges.append((0, end - first, self._bias("window", start, stop, first, end)))
            if last > end_full:
                begin = max(first, end_full)
                edges.append((begin - first, last - first, self._bias("causal", start, stop, begin, last)))
            yield Tile(True, first, last, edges)

    def _bias(self, kind: str, start: int, stop: int, first: int, last: int) -> Tensor:
        """Return 0 where the rows [start, stop) read the columns [first, last), else -inf.

        Blocks at equal places of their chunks have equal ones: they are kept.
        """
        chunk, window, summaries = self.pattern.chunk, self.pattern.window, self.pattern.summaries
        begun = start // chunk
        moved = begun * (summaries if kind == "summary" else chunk)
        name = (kind, start - begun * chunk, stop - start, first - moved, last - first)
        if name not in self._biases:
            row_R1 = torch.arange(start, stop, device=self.query_QTD.device)[:, None]
            column_1N = torch.arange(first, last, device=row_R1.device)[None]
            if kind == "summary":
                reads_RN = column_1N // summaries < row_R1 // chunk - window
            elif kind == "window":
                reads_RN = column_1N // chunk >= row_R1 // chunk - window
            else:
                reads_RN = column_1N <= row_R1
            bias_RN = torch.zeros(reads_RN.shape, dtype=self.query_QTD.dtype, device=row_R1.device)
            self._biases[name] = bias_RN.masked_fill_(~reads_RN, -torch.inf)
        return self._biases[name]


class HeadGradient(NamedTuple):
    """Sums over blocks: gradients of keys and values, transposed (D, T); the keys' times log2 e."""

    text: Keys
    summary: Keys


def product(left_MK: Tensor, right_NK: Tensor) -> Tensor:
    """Return left right^T (M, N); `left` has contiguous rows, `right` or its transpose has."""
    if onednn.can_multiply(left_MK):
        return onednn.linear(left_MK, right_NK)
    return torch.mm(left_MK, right_NK.T)
