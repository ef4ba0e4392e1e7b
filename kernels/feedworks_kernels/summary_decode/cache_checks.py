"""What SummaryCache accepts. Shape letters as in cache.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, int64

from feedworks_kernels.summary_attention.pattern import Rows
from feedworks_kernels.summary_decode.checks import FLOATS, shape, what
from feedworks_kernels.summary_decode.extension import Extension
from feedworks_kernels.summary_decode.layout import CacheLayout, Places


def check_sizes(num_slots: int, num_heads: int, width: int, dtype: torch.dtype) -> None:
    """Refuse a cache of impossible sizes.

    Raises:
        ValueError: as `SummaryCache`.
    """
    for name, value in (("num_slots", num_slots), ("num_heads", num_heads), ("width", width)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer from 1 on, got {value!r}")
    if dtype not in FLOATS:
        raise ValueError(f"dtype: expected one of {', '.join(map(str, FLOATS))}, got {dtype}")


def check_prompts(
    layout: CacheLayout,
    cache_NGLD: Tensor,
    parts: tuple[Rows, Rows],
    slots: Sequence[int],
    lengths: Sequence[int],
) -> None:
    """Refuse prompts that do not fit the cache; values on the device are not looked at.

    Raises:
        ValueError: as `SummaryCache.prefill`.
    """
    check_slot_list(slots, cache_NGLD.shape[0])
    if len(lengths) != len(slots):
        raise ValueError(f"lengths: expected one for each of the {len(slots)} slots, got {len(lengths)}")
    if torch.is_grad_enabled() and any(rows.requires_grad for part in parts for rows in part[1:]):
        raise ValueError("prefill has no gradient: make it under torch.no_grad()")
    num_rows = []
    for name, part in zip(("text", "summary"), parts, strict=True):
        num_rows.append(part.key_BGTD.shape[2] if part.key_BGTD.ndim == 4 else 0)
        expected = (len(slots), cache_NGLD.shape[1], num_rows[-1], cache_NGLD.shape[3])
        for kind, tensor in zip(("key", "value"), part[1:], strict=True):
            _check_tensor(f"{name} {kind}", tensor, expected, cache_NGLD)
    most = min(num_rows[0], layout.capacity)
    for slot, length in zip(slots, lengths, strict=True):
        if not 0 <= length <= most:
            raise ValueError(
                f"prompt of slot {slot} has {length} tokens: expected 0 .. {most}"
                f" ({num_rows[0]} rows are given, the capacity is {layout.capacity})"
            )
        needed = layout.summaries * (length // layout.chunk)
        if layout.window is not None and num_rows[1] < needed:
            raise ValueError(
                f"prompt of slot {slot} has {length} tokens and {needed} summaries: got {num_rows[1]}"
            )


def check_slot_list(slots: Sequence[int], num_slots: int) -> None:
    """Refuse slots that are not there or are named twice.

    Raises:
        ValueError: there is one.
    """
    for slot in slots:
        if not 0 <= slot < num_slots:
            raise ValueError(f"slot {slot}: expected 0 .. {num_slots - 1}")
    if len(set(slots)) < len(slots):
        raise ValueError(f"slots {list(slots)}: expected each once")


def check_empty(length_N: Tensor, slots: Sequence[int]) -> None:
    """Refuse slots that hold a sequence; looks at the lengths.

    Raises:
        ValueError: there is one.
    """
    stored = length_N.tolist()
    for slot in slots:
        if stored[slot]:
            raise ValueError(
                f"slot {slot} holds a sequence of {stored[slot]} tokens: reset it before prefill"
            )


def check_extension(
    cache_NGLD: Tensor, length_N: Tensor, slot: int, parts: tuple[Rows, Rows], plan: Extension
) -> None:
    """Refuse several new tokens that do not fit; on a GPU the stored length is not looked at.

    Raises:
        ValueError: as `SummaryCache.extend`.
    """
    check_slot_list([slot], len(length_N))
    if length_N.device.type == "cpu" and int(length_N[slot]) != plan.length:
        raise ValueError(
            f"slot {slot} holds {int(length_N[slot])} tokens: the extension is for {plan.length}"
        )
    if torch.is_grad_enabled() and any(rows.requires_grad for part in parts for rows in part):
        raise ValueError("an extension has no gradient: make it under torch.no_grad()")
    num_heads = parts[0].query_BHTD.shape[1] if parts[0].query_BHTD.ndim == 4 else 0
    num_groups, width = cache_NGLD.shape[1], cache_NGLD.shape[3]
    if not num_heads or num_heads % num_groups:
        raise ValueError(f"text query has {num_heads} heads: expected a multiple of the cache's {num_groups}")
    numbers = ("text", plan.num_text), ("summary", plan.num_summaries)
    for (name, number), part in zip(numbers, parts, strict=True):
        for kind, tensor, heads in zip(
            ("query", "key", "value"), part, (num_heads, num_groups, num_groups), strict=True
        ):
            _check_tensor(f"{name} {kind}", tensor, (1, heads, number, width), cache_NGLD)


def check_growth(layout: CacheLayout, capacity: int) -> None:
    """Refuse a capacity that would lose rows.

    Raises:
        ValueError: as `SummaryCache.reserve`.
    """
    if not isinstance(capacity, int) or capacity < layout.capacity:
        raise ValueError(
            f"capacity: expected an integer from {layout.capacity}, the present one, on, got {capacity!r}"
        )


def check_index(name: str, index: Tensor, length_N: Tensor) -> None:
    """Refuse an index of the wrong shape, type or device.

    Raises:
        ValueError: it is.
    """
    if index.ndim != 1 or index.dtype != int64 or index.device != length_N.device:
        raise ValueError(
            f"{name}: expected int64 (B,) on {length_N.device}, got {what(index)} on {index.device}"
        )


def check_step(
    layout: CacheLayout, length_N: Tensor, slot_B: Tensor, ending_S: Tensor | None, *, summaries: bool
) -> None:
    """Refuse a step that cannot be made; on a GPU, where looking costs a wait, do nothing.

    Raises:
        ValueError: as `SummaryCache.places`.
    """
    if length_N.device.type != "cpu":
        return
    slots, lengths = slot_B.tolist(), length_N.tolist()
    check_slot_list([slot for slot in slots if slot != -1], len(lengths))
    given = set(range(len(slots)) if ending_S is None else ending_S.tolist()) if summaries else set()
    if given and not given <= set(range(len(slots))):
        raise ValueError(f"ending {sorted(given)}: expected places in slot, 0 .. {len(slots) - 1}")
    if ending_S is not None and len(given) < len(ending_S):
        raise ValueError(f"ending {ending_S.tolist()}: expected each once")
    for b, slot in enumerate(slots):
        if slot == -1:
            continue
        if lengths[slot] >= layout.capacity:
            raise ValueError(
                f"slot {slot} is full: {lengths[slot]} tokens are its capacity; reset it or reserve more"
            )
        if lengths[slot] % layout.chunk == layout.chunk - 1 and b not in given:
            raise ValueError(
                f"slot {slot}: this token ends a chunk (token {lengths[slot]}): its summaries are needed"
            )


def check_rows(
    layout: CacheLayout, cache_NGLD: Tensor, text: Rows, summary: Rows | None, ending_S: Tensor | None
) -> None:
    """Refuse new rows of the wrong shape, type or device.

    Raises:
        ValueError: as `SummaryCache.step`.
    """
    _, num_groups, _, width = cache_NGLD.shape
    if text.query_BHTD.ndim != 4:
        raise ValueError(f"text query: expected (B, H, 1, {width}), got {what(text.query_BHTD)}")
    num_batch, num_heads = text.query_BHTD.shape[:2]
    if num_heads % num_groups:
        raise ValueError(f"text query has {num_heads} heads: expected a multiple of the cache's {num_groups}")
    if torch.is_grad_enabled() and any(rows.requires_grad for rows in (*text, *(summary or ()))):
        raise ValueError("a step has no gradient: make it under torch.no_grad()")
    heads = (num_heads, num_groups, num_groups)
    for kind, tensor, number in zip(("query", "key", "value"), text, heads, strict=True):
        _check_tensor(f"text {kind}", tensor, (num_batch, number, 1, width), cache_NGLD)
    if summary is None:
        if ending_S is not None:
            raise ValueError("ending names sequences whose summaries are given, and there are none")
        return
    num_given = num_batch if ending_S is None else len(ending_S)
    for kind, tensor, number in zip(("query", "key", "value"), summary, heads, strict=True):
        _check_tensor(f"summary {kind}", tensor, (num_given, number, layout.summaries, width), cache_NGLD)


def check_places(layout: CacheLayout, places: Places, text: Rows, summary: Rows | None) -> None:
    """Refuse places of another batch or layout.

    Raises:
        ValueError: as `SummaryCache.step`.
    """
    num_batch, num_queries = len(text.query_BHTD), 1 if summary is None else 1 + layout.summaries
    found = (*places.write_BQ.shape, places.move_BP.shape[1])
    expected = (num_batch, num_queries, layout.summaries + layout.chunk)
    if found != expected:
        raise ValueError(
            f"places are for (sequences, rows, rows to move) = {found}: expected {expected}; "
            f"make them by places(slot, ending, summaries={summary is not None}) of a cache with this layout"
        )


def _check_tensor(name: str, tensor: Tensor, expected: tuple[int, ...], cache_NGLD: Tensor) -> None:
    if shape(tensor) != expected or tensor.dtype != cache_NGLD.dtype:
        raise ValueError(f"{name}: expected {cache_NGLD.dtype} {expected} like the cache, got {what(tensor)}")
    if tensor.device != cache_NGLD.device:
        raise ValueError(
            f"{name} lies on {tensor.device} and the cache on {cache_NGLD.device}: move one of them"
        )
