"""What summary_attention's forms share: their arguments and results, and who reads whom, as plain arithmetic.

The text is cut into chunks of k rows; each chunk has m summary rows, stored apart. Text row t of chunk c
reads text rows up to itself of the chunks c - W .. c, and the summaries of the chunks before c - W. A summary
row reads the text of its own chunk and the summaries of its chunk up to itself.

Shape letters: B batch, H query heads, G key and value heads (H / G query heads share one), T text rows, S
summary rows (m per chunk; a last chunk of less than k rows has m or none), D head width, C chunks,
ceil(T / k).

Source: arXiv 2604.24432; the arithmetic was checked by brute force in
tests/feedworks_kernels/test_summary_attention_pattern.py.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Queries, keys and values of the text rows, or (with S for T) of the summary rows."""

    query_BHTD: Tensor
    key_BGTD: Tensor
    value_BGTD: Tensor


class Forward(NamedTuple):
    """What a forward pass returns; the gradient needs all of it.

    The outputs have their query's type. The log-sum-exps are natural logarithms of the sum of
    exp(scale * query . key) over all that a row reads, in fp32 (fp64 for fp64 rows), contiguous.
    """

    text_BHTD: Tensor
    summary_BHSD: Tensor
    text_lse_BHT: Tensor
    summary_lse_BHS: Tensor


class Gradients(NamedTuple):
    """Gradients with respect to queries, keys and values, in their types."""

    text: Rows
    summary: Rows


class Pattern(NamedTuple):
    """Sizes of the attention pattern.

    Attributes:
        chunk: k, text rows per chunk.
        window: W, whole chunks before its own that a text row reads raw; 0 .. C, where C reads all raw.
        summaries: m, summary rows per chunk.
        scale: factor of the products of queries and keys.
        first_chunk_BC: int32, first chunk of the document that a chunk belongs to: nothing before it is read.
            None: one document per sequence.
    """

    chunk: int
    window: int
    summaries: int
    scale: float
    first_chunk_BC: Tensor | None = None

    def num_chunks(self, num_text: int) -> int:
        """Return C, a last chunk of less than k rows included."""
        return -(-num_text // self.chunk)

    def first_raw_chunk(self, row: int) -> int:
        """Return the first chunk that text row `row` reads raw; it reads the summaries of all before."""
        return max(0, row // self.chunk - self.window)

    # The bounds of loops over tiles, without documents: those only hide more. A form that knows first_chunk
    # may start later.

    def text_keys(self, start: int, stop: int) -> tuple[int, int]:
        """Return the text rows [first, last) that some of the text rows [start, stop) reads."""
        return self.chunk * self.first_raw_chunk(start), stop

    def text_keys_unmasked(self, start: int, stop: int) -> tuple[int, int]:
        """Return the text rows [first, last) that all of the text rows [start, stop) read; may be empty."""
        return self.chunk * self.first_raw_chunk(stop - 1), start + 1

    def summary_keys(self, start: int, stop: int) -> tuple[int, int]:
        """Return how many of the first summary rows all, and how many some, of [start, stop) read."""
        return (
            self.summaries * self.first_raw_chunk(start),
            self.summaries * self.first_raw_chunk(stop - 1),
        )

    def text_readers(self, start: int, stop: int, num_text: int) -> tuple[int, int]:
        """Return the text rows [first, last) that read some of the text rows [start, stop)."""
        return start, min(num_text, self.chunk * ((stop - 1) // self.chunk + self.window + 1))

    def summary_readers(self, start: int, num_text: int) -> tuple[int, int]:
        """Return the text rows [first, last) that read some of the summary rows from `start` on."""
        return min(num_text, self.chunk * (start // self.summaries + self.window + 1)), num_text
