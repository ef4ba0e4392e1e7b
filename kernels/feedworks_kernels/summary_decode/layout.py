"""Where the rows of a sequence lie in its slot of the cache, and which of them a new token writes and reads.

    row  0         m            m + k         m + k + R k             m + k + R k + m C    (one more)
         | scratch | chunk      | ring        | summaries             | spare |
         | m       | k, filled  | R chunks    | m per chunk, growing  |       |
         |         | leftwards  |             | rightwards            |       |

The text row of a token reads from the newest row of its chunk to the end of the ring, or of the summaries
that are older than the window: one slice. Summary j of an ending chunk lies in scratch row m - 1 - j and
reads from itself to the chunk's end: one slice too. Then the chunk moves into the ring, over the oldest one,
and the summaries move behind the others. Positions are in the keys before they are stored: order is free.

Shape letters: B sequences, N slots, L rows of a slot, Q = 1 + m new rows, P = m + k rows that may move,
S groups of summaries. k chunk, m summaries per chunk, C chunks of the capacity, R = min(W, C) of the ring.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CacheLayout(NamedTuple):
    """Sizes of one slot.

    Attributes:
        chunk: k, text tokens per chunk.
        window: W, whole chunks before its own that a token reads raw; None: all, and no summary is kept.
        capacity: text tokens that a sequence may have.
        summaries: m, summaries per chunk.
    """

    chunk: int
    window: int | None
    capacity: int
    summaries: int = 1

    @property
    def num_chunks(self) -> int:
        """C: whole chunks of a sequence at capacity."""
        return self.capacity // self.chunk

    @property
    def ring_chunks(self) -> int:
        """R: chunks of the ring; all of them where the window is that large."""
        return self.num_chunks if self.window is None else min(self.window, self.num_chunks)

    @property
    def first_ring_row(self) -> int:
        """Where the ring starts."""
        return self.summaries + self.chunk

    @property
    def first_summary_row(self) -> int:
        """Where the kept summaries start."""
        return self.first_ring_row + self.ring_chunks * self.chunk

    @property
    def spare_row(self) -> int:
        """Last row: what is to be written nowhere goes there, so that a step needs no branch."""
        kept = 0 if self.window is None else self.summaries * self.num_chunks
        return self.first_summary_row + kept

    @property
    def num_rows(self) -> int:
        """L: rows of a slot."""
        return self.spare_row + 1

    def used_rows(self, length: int) -> int:
        """Return T(n): rows that a sequence of n tokens keeps, the m + k + 1 rows of working space aside.

        Raises:
            ValueError: the length is not in 0 .. capacity.
        """
        if not 0 <= length <= self.capacity:
            raise ValueError(f"length {length}: expected 0 .. {self.capacity}, the capacity")
        chunks, rest = divmod(length, self.chunk)
        kept = 0 if self.window is None else self.summaries * chunks
        return rest + self.chunk * min(chunks, self.ring_chunks) + kept

    def check(self) -> None:
        """Refuse sizes that make no cache.

        Raises:
            ValueError: one of them is out of range.
        """
        least = {"chunk": 1, "window": 0, "capacity": 1, "summaries": 1}
        for name, value in self._asdict().items():
            if value is None and name == "window":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least[name]:
                raise ValueError(f"{name}: expected an integer from {least[name]} on, got {value!r}")


class Places(NamedTuple):
    """What one step writes and reads, the same for every layer of this layout; tensors on the cache's device.

    Attributes:
        slot_B: slot of each sequence; 0 where there is none.
        start_BQ: first row that the text row, and each summary row, reads; -1 where the step is impossible.
        stop_BQ: the row after the last one.
        write_BQ: row that each new key and value goes to.
        move_BP: row that each of the first m + k rows goes to afterwards: mostly itself.
        advance_B: 1, or 0 where there is no sequence or the step is impossible.
    """

    slot_B: Tensor
    start_BQ: Tensor
    stop_BQ: Tensor
    write_BQ: Tensor
    move_BP: Tensor
    advance_B: Tensor


def places(
    layout: CacheLayout, length_N: Tensor, slot_B: Tensor, ending_S: Tensor | None, *, summaries: bool
) -> Places:
    """Say where the next token of some sequences goes and what it reads. No value is looked at on the host.

    Args:
        layout: sizes.
        length_N: int64, tokens of each slot.
        slot_B: int64; -1 is no sequence: it writes nothing that is read, and its outputs are 0.
        ending_S: int64, sequences (places in `slot_B`) whose summaries are given; None: all of them.
        summaries: summaries are given.

    Returns:
        what the step does. It is impossible past the capacity, without the summaries of a chunk that ends,
        and in a slot that is not there: its outputs are NaN and it changes nothing.
    """
    chunk, num_summaries, device = layout.chunk, layout.summaries, length_N.device
    there_B = (slot_B >= 0) & (slot_B < length_N.shape[0])
    chosen_B = torch.where(there_B, slot_B, 0)
    length_B = length_N[chosen_B]
    index_B, chunk_B = length_B % chunk, length_B // chunk
    ends_B = index_B == chunk - 1
    given_B = torch.full_like(ends_B, summaries and ending_S is None)
    if summaries and ending_S is not None:
        given_B = given_B.index_fill(0, ending_S, True)
    possible_B = there_B & (length_B < layout.capacity) & (given_B | ~ends_B)
    text_B = layout.first_ring_row - 1 - index_B
    # A ring that never fills up has no summaries behind it: `window` may be more than R only then.
    raw_B, hidden_B = chunk_B.clamp(max=layout.ring_chunks), (chunk_B - layout.ring_chunks).clamp(min=0)
    stop_B = layout.first_ring_row + raw_B * chunk + hidden_B * num_summaries
    summary_m = torch.arange(num_summaries - 1, -1, -1, device=device) if summaries else text_B.new_empty(0)
    own_Bm = summary_m.expand(len(slot_B), -1)
    write_BQ = torch.cat([text_B[:, None], own_Bm], dim=1)
    reads_BQ = torch.cat([torch.ones_like(ends_B)[:, None], ends_B[:, None].expand_as(own_Bm)], dim=1)
    stop_BQ = torch.cat([stop_B[:, None], torch.full_like(own_Bm, layout.first_ring_row)], dim=1)
    nothing_B = torch.where(slot_B == -1, 0, -1)[:, None]
    return Places(
        slot_B=chosen_B,
        start_BQ=torch.where(possible_B[:, None], write_BQ, nothing_B),
        stop_BQ=torch.where(possible_B[:, None] & reads_BQ, stop_BQ, 0),
        write_BQ=torch.where(possible_B[:, None], write_BQ, layout.spare_row),
        move_BP=_moves(layout, chunk_B, possible_B & ends_B),
        advance_B=possible_B.to(length_N.dtype),
    )


def _moves(layout: CacheLayout, chunk_B: Tensor, moves_B: Tensor) -> Tensor:
    """Return where scratch and chunk go when the chunk ends; a row that goes nowhere goes to itself."""
    chunk, num_summaries = layout.chunk, layout.summaries
    stay_P = torch.arange(num_summaries + chunk, device=chunk_B.device)
    stay_BP = stay_P.expand(len(chunk_B), -1)
    scratch_Bm, text_Bk = stay_BP[:, :num_summaries], stay_BP[:, num_summaries:]
    if layout.window is not None:
        last_B = layout.first_summary_row + chunk_B * num_summaries + (num_summaries - 1)
        scratch_Bm = last_B[:, None] - stay_P[:num_summaries]
    if layout.ring_chunks:
        text_Bk = text_Bk + (chunk_B % layout.ring_chunks * chunk)[:, None] + chunk
    return torch.where(moves_B[:, None], torch.cat([scratch_Bm, text_Bk], dim=1), stay_P)
