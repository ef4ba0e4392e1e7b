"""The cache of one summary attention layer for several sequences of unequal lengths, and its decoding step.

Shape letters: B sequences, H query heads, G key and value heads, N slots, L rows of a slot, D head width, T
text tokens of a prompt, m summaries per chunk, S sequences whose chunk ends, Q = 1 + m, P = m + k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels.summary_attention.pattern import Rows
from feedworks_kernels.summary_decode import cache_checks, registration
from feedworks_kernels.summary_decode.extension import Extension, attend, extension, store
from feedworks_kernels.summary_decode.layout import CacheLayout, Places, places


class DecodeStep(NamedTuple):
    """Outputs of one step: text (B, H, 1, D); summaries (B or S, H, m, D), or None where none were given.

    Of an extension: (1, H, T, D) and (1, H, S, D).
    """

    text_BHQD: Tensor
    summary_BHmD: Tensor | None


class SummaryCache:
    """Keys and values of one layer, N slots of equal capacity; a slot holds one sequence at a time.

    `prefill` fills an empty slot with a prompt (or a sequence starts empty), `step` adds one token to any of
    the sequences, `reset` frees a slot. All state is in `key_NGLD`, `value_NGLD`, `length_N`; where rows lie
    stands in layout.py and README.md. `step` never waits for a GPU and replaces no tensor: it can be
    captured in a CUDA graph.

    Source: arXiv 2604.24432; one slice per query and several sequences at a time are this package's.
    """

    def __init__(
        self,
        layout: CacheLayout,
        num_slots: int,
        num_heads: int,
        width: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate the cache.

        Args:
            layout: chunk, window, summaries and capacity.
            num_slots: N, sequences at a time.
            num_heads: G, key and value heads.
            width: D, head width.
            dtype: fp32, fp16, bf16 or (PyTorch forms) fp64.
            device: where it lies.

        Raises:
            ValueError: a size is out of range or the type is no float.
        """
        layout.check()
        cache_checks.check_sizes(num_slots, num_heads, width, dtype)
        self.layout = layout
        # Zeros, not whatever the memory held: a NaN behind a sequence would send its step another way round,
        # whose last bits differ. A CPU's zero pages cost nothing until they are used.
        self.key_NGLD, self.value_NGLD = (
            torch.zeros(num_slots, num_heads, layout.num_rows, width, dtype=dtype, device=device)
            for _ in range(2)
        )
        self.length_N = torch.zeros(num_slots, dtype=torch.int64, device=device)

    def prefill(
        self,
        slots: Sequence[int],
        text: Rows,
        summary: Rows,
        lengths: Sequence[int] | None = None,
        *,
        trusted: bool = False,
    ) -> None:
        """Store the keys and values of prompts in empty slots; their attention is `summary_attention`'s.

        Args:
            slots: a slot for each prompt.
            text: keys and values (B, G, T, D), prompts left-aligned; queries are not looked at.
            summary: keys and values of the summaries, m per chunk, at least those of all whole chunks.
            lengths: tokens of each prompt; without it T.
            trusted: the slots are known to be empty; looking waits for what a GPU has in its queue.

        Raises:
            ValueError: a slot is not there, named twice or busy; a prompt is longer than T, the capacity or
                its summaries; shapes, types or devices do not fit; a gradient is asked for.
        """
        num_text = text.key_BGTD.shape[2]
        lengths = [num_text] * len(slots) if lengths is None else [int(length) for length in lengths]
        cache_checks.check_prompts(self.layout, self.key_NGLD, (text, summary), slots, lengths)
        if not trusted:
            cache_checks.check_empty(self.length_N, slots)
        for b, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            for cache, text_BGTD, summary_BGTD in (
                (self.key_NGLD, text.key_BGTD, summary.key_BGTD),
                (self.value_NGLD, text.value_BGTD, summary.value_BGTD),
            ):
                store(self.layout, cache[slot], 0, text_BGTD[b, :, :length], summary_BGTD[b])
        if slots:
            index = torch.tensor(list(slots), device=self.length_N.device)
            self.length_N[index] = torch.tensor(lengths, device=self.length_N.device)

    def extension(self, length: int, num_tokens: int) -> Extension:
        """Say what tokens read that come behind `length` others, once for all layers with this layout.

        Raises:
            ValueError: there is no token, or there are more than the capacity.
        """
        return extension(self.layout, length, num_tokens, self.length_N.device)

    def extend(
        self, slot: int, text: Rows, summary: Rows, plan: Extension, *, scale: float | None = None
    ) -> DecodeStep:
        """Add several text tokens to one sequence and attend: a long prompt in parts, or a next turn.

        The memory of the products grows with the new tokens times all that the sequence holds; not on a CPU.

        Args:
            slot: the sequence, or an empty slot.
            text: query (1, H, T, D), key and value (1, G, T, D) of the new tokens.
            summary: the same of the summary rows of all chunks that these tokens end, m for each.
            plan: what `extension` returned for the sequence's length.
            scale: factor of the products; without it D ** -0.5.

        Returns:
            text (1, H, T, D) and summaries (1, H, S, D).

        Raises:
            ValueError: the slot is not there or is not of that length, shapes, types or devices do not fit,
                or a gradient is asked for.
        """
        cache_checks.check_extension(self.key_NGLD, self.length_N, slot, (text, summary), plan)
        scale = text.query_BHTD.shape[3] ** -0.5 if scale is None else scale
        caches = self.key_NGLD[slot], self.value_NGLD[slot]
        outs = attend(self.layout, caches, text, summary, plan, scale)
        for cache_GLD, text_BGTD, summary_BGSD in zip(caches, text[1:], summary[1:], strict=True):
            store(self.layout, cache_GLD, plan.length, text_BGTD[0], summary_BGSD[0])
        self.length_N[slot] = plan.length + plan.num_text
        return DecodeStep(*outs)

    def places(
        self, slot_B: Tensor | None = None, ending_S: Tensor | None = None, *, summaries: bool = True
    ) -> Places:
        """Say where the next token of each sequence goes, once for all layers that are at this point.

        Args:
            slot_B: int64, the sequences; -1 is none (padding to a fixed B). Without it all N slots in order.
            ending_S: int64, places in `slot_B` that summaries will be given for; without it all.
            summaries: summaries will be given.

        Raises:
            ValueError: a slot is not there, named twice or full, or a chunk ends without summaries (on CUDA,
                where looking costs a wait, these rows of the step are NaN and the sequence stays as it was).
        """
        if slot_B is None:
            slot_B = torch.arange(len(self.length_N), device=self.length_N.device)
        cache_checks.check_index("slot", slot_B, self.length_N)
        if ending_S is not None:
            cache_checks.check_index("ending", ending_S, self.length_N)
        if not torch.compiler.is_compiling():
            cache_checks.check_step(self.layout, self.length_N, slot_B, ending_S, summaries=summaries)
        return places(self.layout, self.length_N, slot_B, ending_S, summaries=summaries)

    def step(
        self,
        text: Rows,
        summary: Rows | None = None,
        *,
        slot_B: Tensor | None = None,
        ending_S: Tensor | None = None,
        places: Places | None = None,
        scale: float | None = None,
    ) -> DecodeStep:
        """Add one text token to each sequence and attend; end the chunks that are full.

        Args:
            text: query (B, H, 1, D), key and value (B, G, 1, D) of the new token.
            summary: the same of the m summary rows that follow it, (B, ., m, D), or (S, ., m, D) with
                `ending_S`. Those of a sequence whose chunk goes on are not used. None: no chunk ends.
            slot_B: as in `places`.
            ending_S: as in `places`, no sequence twice.
            places: what `places` returned, for this cache or one with the same layout and the same history.
            scale: factor of the products; without it D ** -0.5.

        Returns:
            outputs; 0 for padding and for summaries that are not used.

        Raises:
            ValueError: shapes, types or devices do not fit, or as `places`.
        """
        cache_checks.check_rows(self.layout, self.key_NGLD, text, summary, ending_S)
        if places is None:
            places = self.places(slot_B, ending_S, summaries=summary is not None)
        cache_checks.check_places(self.layout, places, text, summary)
        scale = self.key_NGLD.shape[3] ** -0.5 if scale is None else scale
        moves = None if summary is None else places
        out_BHQD = self.advance(_together(text, summary, ending_S), places, moves, scale)
        if summary is None:
            return DecodeStep(out_BHQD, None)
        summary_BHmD = out_BHQD[:, :, 1:]
        return DecodeStep(out_BHQD[:, :, :1], summary_BHmD if ending_S is None else summary_BHmD[ending_S])

    def advance(self, rows: Rows, places: Places, moves: Places | None, scale: float) -> Tensor:
        """Do what `step` does, unchecked, for rows that lie together.

        Args:
            rows: (B, ., 1 + m, D): each sequence's text row and summary rows; (B, ., 1, D) if no chunk ends.
            places: of this step.
            moves: the same for at least the sequences whose chunk ends; None if none does.
            scale: factor of the products.

        Returns:
            (B, H, 1 + m or 1, D).
        """
        caches = self.key_NGLD, self.value_NGLD
        registration.write(caches, rows[1:], places)
        slices = places.start_BQ, places.stop_BQ
        out_BHQD = registration.attend(rows.query_BHTD, caches, slices, places.slot_B, scale)
        # Not in one of the operators: torch 2.13's inductor may compute places after an operator's change.
        self.length_N.index_add_(0, places.slot_B, places.advance_B)
        if moves is not None:
            registration.move(caches, moves)
        return out_BHQD

    def reset(self, slots: Sequence[int] | None = None) -> None:
        """Forget sequences, all without an argument: their slots are free and nothing of them is read again.

        Raises:
            ValueError: a slot is not there.
        """
        if slots is None:
            self.length_N.zero_()
            return
        cache_checks.check_slot_list(slots, len(self.length_N))
        if slots:
            self.length_N[torch.tensor(list(slots), device=self.length_N.device)] = 0

    def reserve(self, capacity: int) -> None:
        """Make room for longer sequences, in new tensors: a graph captured before still has the old ones.

        Raises:
            ValueError: the capacity is smaller than the present one.
        """
        cache_checks.check_growth(self.layout, capacity)
        old, new = self.layout, self.layout._replace(capacity=capacity)
        for name in ("key_NGLD", "value_NGLD"):
            before_NGLD: Tensor = getattr(self, name)
            num_slots, num_heads, _, width = before_NGLD.shape
            after_NGLD = before_NGLD.new_zeros(num_slots, num_heads, new.num_rows, width)
            after_NGLD[:, :, : old.first_summary_row] = before_NGLD[:, :, : old.first_summary_row]
            kept = old.spare_row - old.first_summary_row
            after_NGLD[:, :, new.first_summary_row :][:, :, :kept] = before_NGLD[
                :, :, old.first_summary_row : old.spare_row
            ]
            setattr(self, name, after_NGLD)
        self.layout = new

    @property
    def num_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.key_NGLD.nbytes + self.value_NGLD.nbytes

    def used_bytes(self, lengths: Sequence[int] | None = None) -> int:
        """Return the bytes that sequences of these lengths keep; without it, those held now (a GPU waits).

        Raises:
            ValueError: a length is not in 0 .. capacity.
        """
        found = self.length_N.tolist() if lengths is None else lengths
        row_bytes = 2 * self.key_NGLD.shape[1] * self.key_NGLD.shape[3] * self.key_NGLD.element_size()
        return row_bytes * sum(self.layout.used_rows(length) for length in found)


def _together(text: Rows, summary: Rows | None, ending_S: Tensor | None) -> Rows:
    """Put each sequence's summary rows behind its text row, zeros where none are given."""
    if summary is None:
        return text
    if ending_S is not None:
        batch = len(text.query_BHTD)
        summary = Rows(
            *(rows.new_zeros(batch, *rows.shape[1:]).index_copy(0, ending_S, rows) for rows in summary)
        )
    return Rows(*(torch.cat(pair, dim=2) for pair in zip(text, summary, strict=True)))
