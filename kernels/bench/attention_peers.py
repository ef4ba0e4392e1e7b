"""Other ways to attend, as peers of summary_attention: dense, FlexAttention, the official kernel.

Each function takes the drawn inputs and prepares what stays the same: layouts, block masks, compilation.
FlexAttention's block masks are built here in stripes: the library's own builder writes out all pairs, 16 GB
at 128 Ki rows. A block that is visible as a whole is listed as full and not as partial, too: one that is in
both lists is counted twice.

Shape letters: B batch, H query heads, G key and value heads, T text rows, S summary rows, D head width, N all
T + S rows of the interleaved sequence, Q rows that read.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from feedworks_kernels.summary_attention import Rows
from feedworks_kernels.summary_attention.pattern import Pattern
from feedworks_kernels.summary_attention.reference import kinds

_BLOCK = 128
# Pairs that are looked at together while a block mask is built.
_STRIPE_PAIRS = 1 << 25

MaskMod = Callable[[Any, Any, Any, Any], Tensor]


class Inputs(NamedTuple):
    """Rows and, for gradients, what comes back from behind."""

    text: Rows
    summary: Rows
    grad_text_BHTD: Tensor
    grad_summary_BHSD: Tensor
    pattern: Pattern


# An attention of leaves: what it returns is differentiated with `grads`.
class Prepared(NamedTuple):
    """Leaves, a function of them, and the gradients of its results."""

    leaves: tuple[Tensor, ...]
    run: Callable[..., Any]
    grads: tuple[Tensor, ...]


def dense(inputs: Inputs, backend: str = "") -> Prepared:
    """Causal attention over the text alone: what the summaries are there to avoid."""
    text, scale = inputs.text, inputs.pattern.scale
    group = text.query_BHTD.shape[1] // text.key_BGTD.shape[1]
    # Written out before the clock starts, so that every backend takes the heads.
    key_BHTD, value_BHTD = (part.repeat_interleave(group, dim=1) for part in text[1:])

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)

    leaves = (text.query_BHTD, key_BHTD, value_BHTD)
    return Prepared(leaves, _with_backend(run, backend), (inputs.grad_text_BHTD,))


def _with_backend(run: Callable[..., Any], backend: str) -> Callable[..., Any]:
    if not backend:
        return run
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def chosen(*leaves: Tensor) -> Any:
        with sdpa_kernel([getattr(SDPBackend, backend)]):
            return run(*leaves)

    return chosen


def flex_interleaved(inputs: Inputs, compiled: bool) -> Prepared:
    """FlexAttention on the paper's sequence: each chunk's summaries behind its text."""
    order_N = interleaved_order(inputs)
    block, text_of_block, window = _block_sizes(inputs.pattern)

    def visible(batch: Any, head: Any, reader: Any, key: Any) -> Tensor:
        del batch, head
        apart = reader // block - key // block
        key_is_summary = key % block >= text_of_block
        is_summary = reader % block >= text_of_block
        by_text = ~is_summary & ((apart <= window) ^ key_is_summary)
        by_summary = is_summary & (apart == 0)
        return (reader >= key) & (by_text | by_summary)  # type: ignore[no-any-return]

    joint = [torch.cat(pair, dim=2)[:, :, order_N] for pair in zip(inputs.text, inputs.summary, strict=True)]
    grad = torch.cat([inputs.grad_text_BHTD, inputs.grad_summary_BHSD], dim=2)[:, :, order_N]
    mask = block_mask(visible, len(order_N), len(order_N), grad.device)
    return Prepared(tuple(joint), _flex(mask, inputs.pattern.scale, compiled), (grad,))


def flex_separate(inputs: Inputs, compiled: bool) -> Prepared:
    """FlexAttention on our layout: summaries first, then text; the summary rows by a small dense product."""
    (chunk, window, summaries, scale, _), num_summaries = inputs.pattern, inputs.summary.query_BHTD.shape[2]

    def visible(batch: Any, head: Any, reader: Any, key: Any) -> Tensor:
        del batch, head
        row = key - num_summaries
        far = (key < num_summaries) & (key // summaries < reader // chunk - window)
        near = (row >= 0) & (row <= reader) & (reader // chunk - row // chunk <= window)
        return far | near  # type: ignore[no-any-return]

    num_text = inputs.text.query_BHTD.shape[2]
    mask = block_mask(visible, num_text, num_text + num_summaries, inputs.grad_text_BHTD.device)
    flex = _flex(mask, scale, compiled)
    # Keys and values lie in one buffer from the start; taking them apart costs nothing.
    key, value = (
        torch.cat([far, near], dim=2) for far, near in zip(inputs.summary[1:], inputs.text[1:], strict=True)
    )

    def run(query: Tensor, query_summary: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return flex(query, key, value), _own_chunk(query_summary, key, value, num_summaries, inputs.pattern)

    leaves = (inputs.text.query_BHTD, inputs.summary.query_BHTD, key, value)
    return Prepared(leaves, run, (inputs.grad_text_BHTD, inputs.grad_summary_BHSD))


def flex_window(inputs: Inputs, compiled: bool) -> Prepared:
    """The raw window alone, by FlexAttention: the least that any form has to do."""
    chunk, window, *_ = inputs.pattern

    def visible(batch: Any, head: Any, reader: Any, key: Any) -> Tensor:
        del batch, head
        return (key <= reader) & (reader // chunk - key // chunk <= window)  # type: ignore[no-any-return]

    num_text = inputs.text.query_BHTD.shape[2]
    mask = block_mask(visible, num_text, num_text, inputs.grad_text_BHTD.device)
    return Prepared(tuple(inputs.text), _flex(mask, inputs.pattern.scale, compiled), (inputs.grad_text_BHTD,))


def official(inputs: Inputs) -> Prepared:
    """The kernel of github.com/Kuaishou-OneRec/KSA (package summary_attn); rows (B, N, H, D)."""
    from summary_attn import summary_attn_func

    order_N = interleaved_order(inputs)
    chunk, window, summaries, *_ = inputs.pattern
    joint = tuple(
        torch.cat(pair, dim=2)[:, :, order_N].transpose(1, 2).contiguous()
        for pair in zip(inputs.text, inputs.summary, strict=True)
    )
    grad = torch.cat([inputs.grad_text_BHTD, inputs.grad_summary_BHSD], dim=2)[:, :, order_N]
    place_S = torch.nonzero(order_N >= inputs.text.query_BHTD.shape[2]).squeeze(1)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = summary_attn_func(query, key, value, chunk, summaries, window, summary_pos=place_S)[0]
        return out

    return Prepared(joint, run, (grad.transpose(1, 2).contiguous(),))


def interleaved_order(inputs: Inputs) -> Tensor:
    """Return for each place of the interleaved sequence the row, text rows first."""
    sizes = inputs.text.query_BHTD.shape[2], inputs.summary.query_BHTD.shape[2]
    chunk_N, part_N = kinds(inputs.pattern, *sizes, inputs.text.query_BHTD.device)
    return torch.argsort(chunk_N * (inputs.pattern.chunk + inputs.pattern.summaries) + part_N)


def block_mask(visible: MaskMod, num_readers: int, num_keys: int, device: torch.device) -> Any:
    """Build FlexAttention's block mask in stripes of readers."""
    from torch.nn.attention.flex_attention import BlockMask

    readers, keys = (-(-number // _BLOCK) for number in (num_readers, num_keys))
    key_1N = torch.arange(keys * _BLOCK, device=device)[None]
    inside_1N = key_1N < num_keys
    some = torch.zeros(readers, keys, dtype=torch.bool, device=device)
    every = torch.zeros_like(some)
    stripe = max(1, _STRIPE_PAIRS // (keys * _BLOCK * _BLOCK))
    for low in range(0, readers, stripe):
        high = min(readers, low + stripe)
        reader_Q1 = torch.arange(low * _BLOCK, high * _BLOCK, device=device)[:, None]
        pairs = visible(0, 0, reader_Q1, key_1N) & inside_1N & (reader_Q1 < num_readers)
        blocks = pairs.view(high - low, _BLOCK, keys, _BLOCK)
        some[low:high], every[low:high] = blocks.any(dim=3).any(dim=1), blocks.all(dim=3).all(dim=1)
    partial, full = _listed(some & ~every), _listed(every)
    return BlockMask.from_kv_blocks(
        *partial, *full, BLOCK_SIZE=_BLOCK, mask_mod=visible, seq_lengths=(num_readers, num_keys)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of each row are set, and their numbers first in a row of all."""
    number = blocks.sum(dim=1).int()
    order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True).int()
    return number[None, None], order[None, None].contiguous()


def _flex(mask: Any, scale: float, compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Any = _compiled_flex() if compiled else flex_attention

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        is_grouped = query.shape[1] != key.shape[1]
        out: Tensor = attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=is_grouped)
        return out

    def run_quietly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with warnings.catch_warnings():  # it says that it is not compiled
            warnings.simplefilter("ignore", UserWarning)
            return run(query, key, value)

    return run if compiled else run_quietly


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    import torch._functorch.config
    from torch.nn.attention.flex_attention import flex_attention

    # A gradient that is taken several times needs the forward's buffers again.
    torch._functorch.config.donated_buffer = False
    # Each mask and length is another program.
    torch._dynamo.config.recompile_limit = 64
    # With variable sizes the C++ made of a mask that holds a number does not compile (torch 2.13).
    return torch.compile(flex_attention, dynamic=False)


def _own_chunk(query: Tensor, key: Tensor, value: Tensor, num_summaries: int, pattern: Pattern) -> Tensor:
    """Attend the summary rows to their own chunk; keys hold the summaries, then the text, of whole chunks."""
    chunk, _, summaries, scale, _ = pattern
    group = query.shape[1] // key.shape[1]

    def of_chunks(part: Tensor) -> Tensor:
        own = _in_chunks(part[:, :, :num_summaries], summaries)
        raw = part[:, :, num_summaries : num_summaries + num_summaries // summaries * chunk]
        return torch.cat([_in_chunks(raw, chunk), own], dim=3).repeat_interleave(group, dim=1)

    hidden = torch.ones(summaries, summaries, dtype=torch.bool, device=query.device).triu(1)
    hidden = F.pad(hidden, (chunk, 0))
    score = _in_chunks(query, summaries) @ of_chunks(key).transpose(3, 4) * scale
    weight = torch.softmax(score.masked_fill(hidden, -torch.inf), dim=-1)
    return (weight @ of_chunks(value)).flatten(2, 3)


def _in_chunks(part: Tensor, rows: int) -> Tensor:
    return part.reshape(*part.shape[:2], -1, rows, part.shape[3])


def _block_sizes(pattern: Pattern) -> tuple[int, int, int]:
    return pattern.chunk + pattern.summaries, pattern.chunk, pattern.window


def missing(package: str) -> str:
    """Say that a package is absent; empty where it is there."""
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"
