"""KSA (arXiv 2604.24432): keys and values of all layers for several sequences of unequal lengths.

Shape letters: B sequences, N slots, H query heads, G key and value heads, E width of a head, m summaries of
a chunk, S sequences whose chunk ends with this token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from feedworks.errors import ConfigError
from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks_kernels.summary_attention import Rows
from feedworks_kernels.summary_decode import CacheLayout, DecodeStep, Extension, Places, SummaryCache


class DecodePlan(NamedTuple):
    """One step of decoding; the same for all layers of one layout.

    Attributes:
        slot_B: slot of each sequence.
        ending_S: places in `slot_B` of the sequences whose chunk this token ends, None if there is none.
        length_B: tokens of each sequence before this one: the new token's position.
        places: for each distinct layout, where rows go and what they read.
    """

    slot_B: Tensor
    ending_S: Tensor | None
    length_B: Tensor
    places: dict[CacheLayout, Places]

    @property
    def num_text(self) -> int:
        """B: the first rows of the pass."""
        return len(self.slot_B)


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


class KsaCache(Cache):
    """A ring of raw text and growing summaries for each layer; all text for layers that read all of it.

    Args:
        config: of the model.
        num_slots: N, sequences at a time.
        capacity: tokens that a sequence may have.
        dtype: of keys and values.
        device: where they lie.

    Raises:
        ConfigError: the model has a window and no summaries: such a baseline decodes without a cache.
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        config: Qwen3KsaConfig,
        num_slots: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.capacity = capacity
        self.lengths = [0] * num_slots
        num_heads, width = config.num_key_value_heads, config.head_dim
        self.rings = [
            SummaryCache(layout, num_slots, num_heads, width, dtype=dtype, device=device)
            for layout in layouts(config, capacity)
        ]
        super().__init__(layers=[])

    def store(
        self, layer: int, text: Rows, summary: Rows, slots: Sequence[int], lengths: Sequence[int]
    ) -> None:
        """Keep the prompts' rows of one layer; `lengths` of the host follow with `filled`."""
        ring = self.rings[layer]
        if ring.layout.chunk != self.config.chunk:  # a layer without summaries: one unfinished chunk
            summary = Rows(*(rows[:, :, :0] for rows in summary))
        ring.prefill(slots, text, summary, lengths, trusted=True)

    def filled(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Note that prompts have been stored in all layers."""
        for slot, length in zip(slots, lengths, strict=True):
            self.lengths[slot] = int(length)

    def require_free(self, slots: Sequence[int]) -> None:
        """Refuse slots that hold a sequence.

        Raises:
            ValueError: there is one.
        """
        busy = [slot for slot in slots if self.lengths[slot]]
        if busy:
            raise ValueError(f"slots {busy} hold sequences: reset them before prefill")

    def plan(self, slots: Sequence[int]) -> DecodePlan:
        """Say what the next token of some sequences writes and reads."""
        device = self.rings[0].length_N.device
        chunk, with_summaries = self.config.chunk, self.config.summaries > 0
        lengths = [self.lengths[slot] for slot in slots]
        ending = [b for b, length in enumerate(lengths) if with_summaries and length % chunk == chunk - 1]
        slot_B = torch.tensor(list(slots), device=device)
        ending_S = torch.tensor(ending, device=device) if ending else None
        places: dict[CacheLayout, Places] = {}
        for ring in self.rings:
            if ring.layout not in places:
                given = ending_S if ring.layout.chunk == chunk else None
                places[ring.layout] = ring.places(slot_B, given, summaries=given is not None)
        return DecodePlan(slot_B, ending_S, torch.tensor(lengths, device=device), places)

    def step(
        self, layer: int, text: Rows, summary: Rows | None, plan: DecodePlan, scale: float
    ) -> DecodeStep:
        """Add one token of each sequence to a layer, and the summaries of chunks that end, and attend."""
        ring = self.rings[layer]
        kept = summary if ring.layout.chunk == self.config.chunk else None
        ending_S = plan.ending_S if kept is not None else None
        return ring.step(
            text, kept, slot_B=plan.slot_B, ending_S=ending_S, places=plan.places[ring.layout], scale=scale
        )

    def stepped(self, slots: Sequence[int]) -> None:
        """Note that a token has been added in all layers."""
        for slot in slots:
            self.lengths[slot] += 1

    def plan_extension(self, slot: int, num_tokens: int) -> ExtendPlan:
        """Say what the next tokens of one sequence write and read.

        Raises:
            ValueError: the slot is not there, or they are more than the capacity.
        """
        if not 0 <= slot < len(self.lengths):
            raise ValueError(f"slot {slot}: expected 0 .. {len(self.lengths) - 1}")
        extensions: dict[CacheLayout, Extension] = {}
        for ring in self.rings:
            if ring.layout not in extensions:
                extensions[ring.layout] = ring.extension(self.lengths[slot], num_tokens)
        return ExtendPlan(num_tokens, slot, extensions)

    def extend(self, layer: int, text: Rows, summary: Rows, plan: ExtendPlan, scale: float) -> DecodeStep:
        """Add several tokens of one sequence to a layer, and the summaries of the chunks they end; attend."""
        ring = self.rings[layer]
        return ring.extend(plan.slot, text, summary, plan.extensions[ring.layout], scale=scale)

    def extended(self, plan: ExtendPlan) -> None:
        """Note that the tokens have been added in all layers."""
        self.lengths[plan.slot] += plan.num_text

    def free_slots(self) -> list[int]:
        """Return the slots that hold no sequence."""
        return [slot for slot, length in enumerate(self.lengths) if not length]

    def reset(self, slots: Sequence[int] | None = None) -> None:
        """Forget sequences, all without an argument."""
        chosen = range(len(self.lengths)) if slots is None else slots
        for ring in self.rings:
            ring.reset(list(chosen))
        for slot in chosen:
            self.lengths[slot] = 0

    @property
    def num_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(ring.num_bytes for ring in self.rings)

    def used_bytes(self, lengths: Sequence[int] | None = None) -> int:
        """Return the bytes that sequences of these lengths keep; without it, those held now."""
        found = self.lengths if lengths is None else lengths
        return sum(ring.used_bytes(found) for ring in self.rings)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens of the longest sequence."""
        return max(self.lengths)

    def get_max_length(self) -> int:
        """Return the capacity."""
        return self.capacity

    @property
    def is_compileable(self) -> bool:
        """Whether transformers may compile a model around it: it may not, lengths are kept on the host."""
        return False


def layouts(config: Qwen3KsaConfig, capacity: int) -> list[CacheLayout]:
    """Return how each layer keeps a sequence of up to `capacity` tokens.

    Raises:
        ConfigError: as `KsaCache`.
    """
    windows = config.layer_windows
    if config.summaries == 0 and any(window is not None for window in windows):
        raise ConfigError(
            "a model with windows and without summaries is a baseline and has no cache: "
            "generate with use_cache=False"
        )
    # A layer that gets no summary rows is one unfinished chunk: appended to, read whole.
    plain = CacheLayout(capacity + 1, None, capacity, 1)
    return [
        plain
        if config.summaries == 0 or (window is None and config.summary_bypass)
        else CacheLayout(config.chunk, window, capacity, config.summaries)
        for window in windows
    ]


def formula_bytes(config: Qwen3KsaConfig, length: int, element_bytes: int) -> int:
    """Return what one sequence needs by the paper: 2 G E bytes for each row of T(n), summed over layers.

    T(n) = (n mod k) + k min(floor(n / k), W) + m floor(n / k); n where a layer reads all text raw.

    Source: arXiv 2604.24432; the formula is read off its released code.
    """
    chunks, rest = divmod(length, config.chunk)
    rows = sum(
        length if window is None else rest + config.chunk * min(chunks, window) + config.summaries * chunks
        for window in config.layer_windows
    )
    row_bytes: int = 2 * config.num_key_value_heads * config.head_dim * element_bytes
    return row_bytes * rows
