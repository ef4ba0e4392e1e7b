"""KSA (arXiv 2604.24432): what a pass through the decoder adds to a cache, said once for all layers.

Shape letters: B sequences, R rows of a pass: B of text, then m of summaries for each of S chunks that end;
Q = 1 + m rows of one sequence, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels.summary_decode import CacheLayout, Extension, Places


class Order(NamedTuple):
    """Where the rows of a pass, B of text and then S m of summaries, stand with their sequences' 1 + m rows.

    Attributes:
        row_BQ: row of the pass; for summaries that are not there the sequence's text row.
        sequence_R: b of each row of the pass.
        place_R: q of each row of the pass.
        ending_S: sequences whose chunk this token ends.
    """

    row_BQ: Tensor
    sequence_R: Tensor
    place_R: Tensor
    ending_S: Tensor


class DecodePlan(NamedTuple):
    """One step of decoding; the same for all layers of one layout.

    Attributes:
        slots: of each sequence.
        length_B: tokens of each sequence before this one: the new token's position.
        order: of the rows; None if no chunk ends.
        places: for each distinct layout, where rows go and what they read.
        moves: the same for the sequences whose chunk ends.
    """

    slots: tuple[int, ...]
    length_B: Tensor
    order: Order | None
    places: dict[CacheLayout, Places]
    moves: dict[CacheLayout, Places]

    @property
    def num_text(self) -> int:
        """B: the first rows of the pass."""
        return len(self.slots)


class ExtendPlan(NamedTuple):
    """Several more tokens of one sequence; the same for all layers of one layout.

    Attributes:
        num_text: T.
        slot: of the sequence.
        extensions: for each distinct layout, what the new rows read.
    """

    num_text: int
    slot: int
    extensions: dict[CacheLayout, Extension]


def order_rows(num_sequences: int, ends: list[int], summaries: int, device: torch.device) -> Order:
    """Say which rows of a pass belong together.

    Args:
        num_sequences: B.
        ends: the S sequences, as places in the batch, whose chunk this token ends.
        summaries: m.
        device: of the tables.
    """
    sequence_B, ending_S = torch.arange(num_sequences, device=device), torch.tensor(ends, device=device)
    place_m = torch.arange(1, summaries + 1, device=device)
    row_BQ = sequence_B[:, None].repeat(1, 1 + summaries)
    row_BQ[ending_S, 1:] = num_sequences + torch.arange(len(ends) * summaries, device=device).view(
        -1, summaries
    )
    return Order(
        row_BQ,
        torch.cat((sequence_B, ending_S.repeat_interleave(summaries))),
        torch.cat((torch.zeros_like(sequence_B), place_m.repeat(len(ends)))),
        ending_S,
    )
