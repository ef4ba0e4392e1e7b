"""KSA (arXiv 2604.24432): keys and values of all layers for several sequences of unequal lengths.

Shape letters: B sequences, N slots, H query heads, G key and value heads, E width of a head, m summaries of
a chunk, S sequences whose chunk ends with this token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

from feedworks.errors import ConfigError
from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.plans import DecodePlan, ExtendPlan, plan_step
from feedworks_kernels.summary_attention import Rows
from feedworks_kernels.summary_decode import CacheLayout, DecodeStep, Extension, SummaryCache


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
        self.num_columns = 0
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

    def check_prompts(self, slots: Sequence[int], lengths: Sequence[int], num_text: int) -> None:
        """Refuse prompts that cannot be stored.

        Args:
            slots: one for each prompt.
            lengths: tokens of each prompt.
            num_text: T, the width that they are padded to.

        Raises:
            ValueError: a slot is not there, named twice or busy, or a prompt is empty or too long.
        """
        self._check_slots(slots)
        if busy := [slot for slot in slots if self.lengths[slot]]:
            raise ValueError(f"slots {busy} hold sequences: reset them before prefill")
        if len(lengths) != len(slots):
            raise ValueError(f"lengths: expected one for each of {len(slots)} slots, got {len(lengths)}")
        most = min(num_text, self.capacity)
        for slot, length in zip(slots, lengths, strict=True):
            if not 1 <= length <= most:
                raise ValueError(
                    f"the prompt of slot {slot} has {length} tokens: expected 1 .. {most} "
                    f"({num_text} are given, the capacity is {self.capacity})"
                )

    def _check_slots(self, slots: Sequence[int]) -> None:
        if len(set(slots)) < len(slots):
            raise ValueError(f"slots {list(slots)}: expected each once")
        for slot in slots:
            if not 0 <= slot < len(self.lengths):
                raise ValueError(f"slot {slot}: expected 0 .. {len(self.lengths) - 1}")

    def plan(self, slots: Sequence[int]) -> DecodePlan:
        """Say what the next token of some sequences writes and reads.

        Raises:
            ValueError: a slot is not there, named twice or full.
        """
        self._check_slots(slots)
        # The host knows all lengths: on a GPU a step that cannot be made would give NaN.
        if full := [slot for slot in slots if self.lengths[slot] >= self.capacity]:
            raise ValueError(f"slots {full} are full: they hold {self.capacity} tokens, the capacity")
        lengths = [self.lengths[slot] for slot in slots]
        distinct = dict.fromkeys(ring.layout for ring in self.rings)
        return plan_step(distinct, slots, lengths, self.config, self.rings[0].length_N.device)

    def step(self, layer: int, rows: Rows, plan: DecodePlan, scale: float) -> Tensor:
        """Add one token of each sequence to a layer, and the summaries of chunks that end, and attend.

        Args:
            layer: its number.
            rows: (R, ., E), as `DecodePlan` orders them; a layer without summaries takes the text rows only.
            plan: of this step.
            scale: factor of the products.

        Returns:
            (R, H, E).
        """
        ring = self.rings[layer]
        layout, order = ring.layout, plan.order
        if order is None or layout not in plan.moves:
            together = Rows(*(row_BHE[:, :, None] for row_BHE in rows))
            return ring.advance(together, plan.places[layout], None, scale)[:, :, 0]
        together = Rows(*(row_RHE[order.row_BQ].transpose(1, 2) for row_RHE in rows))
        out_BHQE = ring.advance(together, plan.places[layout], plan.moves[layout], scale)
        return out_BHQE[order.sequence_R, :, order.place_R]

    def stepped(self, slots: Sequence[int]) -> None:
        """Note that a token has been added in all layers."""
        for slot in slots:
            self.lengths[slot] += 1

    def plan_extension(self, slot: int, num_tokens: int) -> ExtendPlan:
        """Say what the next tokens of one sequence write and read.

        Raises:
            ValueError: the slot is not there, or they are more than the capacity.
        """
        self._check_slots([slot])
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

    def drop_torn(self, slots: Sequence[int]) -> None:
        """Empty the slots in which some layers have tokens that others have not, after an error."""
        stored = [ring.length_N.tolist() for ring in self.rings]
        self.reset([slot for slot in slots if any(found[slot] != self.lengths[slot] for found in stored)])

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
        if not any(self.lengths):
            self.num_columns = 0

    def make_room(self, length: int) -> None:
        """Reserve for sequences of this length, and more than that if it has to be done at all."""
        if length > self.capacity:
            self.reserve(max(length, self.capacity * 3 // 2))

    def reserve(self, capacity: int) -> None:
        """Make room for longer sequences, in new tensors, one layer after the other.

        Raises:
            ValueError: the capacity is smaller than the present one.
        """
        if capacity < self.capacity:
            raise ValueError(f"capacity {capacity}: expected at least {self.capacity}, the present one")
        if capacity == self.capacity:
            return
        for number, (ring, layout) in enumerate(zip(self.rings, layouts(self.config, capacity), strict=True)):
            if layout.chunk == ring.layout.chunk:
                ring.reserve(capacity)
            else:
                self.rings[number] = _longer(ring, layout)
        self.capacity = capacity

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let each slot have the sequence of the slot that is named for it, as beam search asks for."""
        chosen = [int(slot) for slot in beam_idx.tolist()]
        changed = [slot for slot, source in enumerate(chosen) if slot != source]
        if not changed:
            return
        device = self.rings[0].length_N.device
        to, source = (
            torch.tensor(changed, device=device),
            torch.tensor([chosen[slot] for slot in changed], device=device),
        )
        for ring in self.rings:
            for tensor in (ring.key_NGLD, ring.value_NGLD, ring.length_N):
                tensor[to] = tensor[source]
        before = list(self.lengths)
        for slot in changed:
            self.lengths[slot] = before[chosen[slot]]

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: what a ring of chunks has overwritten is gone.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "tokens cannot be taken back from a ring of chunks: reset the slots and prefill them"
        )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refuse: the number of slots is fixed.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"the cache has {len(self.lengths)} slots: make one with as many as are needed")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refuse, as `batch_repeat_interleave`."""
        self.batch_repeat_interleave(1)

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values; attention over them is in this type, whatever the model's is."""
        return self.rings[0].key_NGLD.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(ring.num_bytes for ring in self.rings)

    def used_bytes(self, lengths: Sequence[int] | None = None) -> int:
        """Return the bytes that sequences of these lengths keep; without it, those held now."""
        found = self.lengths if lengths is None else lengths
        return sum(ring.used_bytes(found) for ring in self.rings)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens of the longest sequence; with the padding before them if `forward` took them."""
        return self.num_columns or max(self.lengths)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return the capacity."""
        return self.capacity

    def __len__(self) -> int:
        return len(self.rings)

    @property
    def batch_size(self) -> int:
        """The number of slots."""
        return len(self.lengths)

    @property
    def is_compileable(self) -> bool:
        """Whether transformers may compile a model around it: it may not, lengths are kept on the host."""
        return False

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` works."""
        return False


def _longer(ring: SummaryCache, layout: CacheLayout) -> SummaryCache:
    """Copy a cache of one unfinished chunk, which fills leftwards, to the end of a longer chunk."""
    num_slots, num_heads, _, width = ring.key_NGLD.shape
    dtype, device = ring.key_NGLD.dtype, ring.key_NGLD.device
    longer = SummaryCache(layout, num_slots, num_heads, width, dtype=dtype, device=device)
    stop, old = layout.first_ring_row, ring.layout
    for name in ("key_NGLD", "value_NGLD"):
        rows = getattr(ring, name)[:, :, old.summaries : old.first_ring_row]
        getattr(longer, name)[:, :, stop - rows.shape[2] : stop] = rows
    longer.length_N.copy_(ring.length_N)
    return longer


def has_cache(config: Qwen3KsaConfig) -> bool:
    """Whether there is a cache: baselines with windows and without summaries have none."""
    return config.summaries > 0 or all(window is None for window in config.layer_windows)


def layouts(config: Qwen3KsaConfig, capacity: int) -> list[CacheLayout]:
    """Return how each layer keeps a sequence of up to `capacity` tokens.

    Raises:
        ConfigError: as `KsaCache`.
    """
    if not has_cache(config):
        raise ConfigError(
            "a model with windows and without summaries is a baseline and has no cache: "
            "generate with use_cache=False"
        )
    windows = config.layer_windows
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
