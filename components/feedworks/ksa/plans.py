"""KSA (arXiv 2604.24432): what a pass through the decoder adds to a cache, said once for all layers.

Shape letters: B sequences, R rows of a pass: B of text, then m of summaries for each of S chunks that end;
Q = 1 + m rows of one sequence, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks_kernels.summary_decode import CacheLayout, Extension, Places, host_places, to_device

Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


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


def plan_step(
    layouts: Iterable[CacheLayout],
    slots: Sequence[int],
    lengths: Sequence[int],
    config: Qwen3KsaConfig,
    device: torch.device,
) -> DecodePlan:
    """Plan a step that is known to be possible; all tables go to the device in one copy.

    Args:
        layouts: the distinct ones of the cache.
        slots: of the sequences.
        lengths: tokens of each before this step.
        config: of the model.
        device: where the cache lies.
    """
    slot_B, length_B = np.array(slots, dtype=np.int64), np.array(lengths, dtype=np.int64)
    summaries = config.summaries
    ends_B = length_B % config.chunk == config.chunk - 1
    ending_S = np.flatnonzero(ends_B if summaries else ends_B[:0])
    tables: list[Array] = [length_B]
    if len(ending_S):
        tables += _order(len(slots), ending_S, summaries)
    chosen = list(layouts)
    with_summaries = [len(ending_S) > 0 and layout.chunk == config.chunk for layout in chosen]
    for layout, given in zip(chosen, with_summaries, strict=True):
        here = host_places(layout, slot_B, length_B, summaries=given)
        tables += here
        tables += [array[ending_S] for array in here] if given else []
    found = iter(to_device(tables, device))
    length = next(found)
    order = Order(*islice(found, 4)) if len(ending_S) else None
    places: dict[CacheLayout, Places] = {}
    moves: dict[CacheLayout, Places] = {}
    for layout, given in zip(chosen, with_summaries, strict=True):
        places[layout] = Places(*islice(found, 6))
        if given:
            moves[layout] = Places(*islice(found, 6))
    return DecodePlan(tuple(slots), length, order, places, moves)


def _order(num_sequences: int, ending_S: Array, summaries: int) -> list[Array]:
    """Return the fields of `Order`."""
    sequence_B, num_ending = np.arange(num_sequences), len(ending_S)
    row_BQ = np.repeat(sequence_B[:, None], 1 + summaries, axis=1)
    row_BQ[ending_S, 1:] = num_sequences + np.arange(num_ending * summaries).reshape(-1, summaries)
    sequence_R = np.concatenate((sequence_B, np.repeat(ending_S, summaries)))
    place_R = np.concatenate((np.zeros_like(sequence_B), np.tile(np.arange(1, summaries + 1), num_ending)))
    return [row_BQ, sequence_R, place_R, ending_S]
