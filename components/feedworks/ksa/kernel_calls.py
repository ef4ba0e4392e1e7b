"""KSA (arXiv 2604.24432): the launches of its presets on a GPU, for `feedworks_kernels.ahead`.

Sizes that no kernel is compiled for (lengths, layers, the vocabulary) are any. How many parts a sequence's
cache is cut into depends on streams and context, so those a service may be told go through.

Shape letters: B sequences, H query heads, G key and value heads, E width of a head, T text rows, S summary
rows, Q rows of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from feedworks.ksa.config import PRESETS
from feedworks.ksa.settings import ModelConfig
from feedworks_kernels import CacheLayout, Rows, SummaryCache, cache_attention, summary_attention
from feedworks_kernels.ahead import Call

_MOST_STREAMS = 256


def calls(*, training: bool) -> Iterator[Call]:
    """Yield prompts and decoding steps of every preset; with `training` the forward passes and gradients."""
    for preset, make in PRESETS.items():
        config = make()
        model, dtype = config.model, getattr(torch, config.package.dtype)
        yield Call(f"ksa {preset}: prompt", partial(_attend, model, dtype))
        yield Call(f"ksa {preset}: step", partial(_step, model, dtype))
        yield Call(f"ksa {preset}: parts", partial(_parts, model, dtype, config.package.max_context))
        if training:
            kind = torch.bfloat16 if "bf16" in config.pretrain.training.precision else torch.float32
            for packed in (False, True):
                yield Call(f"ksa {preset}: gradient", partial(_attend, model, kind, packed, gradient=True))


def _attend(model: ModelConfig, dtype: torch.dtype, packed: bool = False, *, gradient: bool = False) -> None:
    """Text and its summaries, as `attention.forward` cuts them out of what the projections give."""
    num_text, num_summaries = 2 * model.chunk, 2 * model.summaries
    # How many parts a gradient is cut into depends on the number of sequences, and is 1 at the last.
    for batch in range(1, 133) if gradient else (1,):
        query, key, value = (
            torch.zeros(batch, num_text + num_summaries, heads, model.head_width, dtype=dtype)
            .transpose(1, 2)
            .requires_grad_(gradient)
            for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)
        )
        first_BC = torch.zeros(batch, 2, dtype=torch.int32) if packed else None
        out = summary_attention(
            Rows(*(rows[:, :, :num_text] for rows in (query, key, value))),
            Rows(*(rows[:, :, num_text:] for rows in (query, key, value))),
            chunk=model.chunk,
            window=model.window,
            summaries=model.summaries,
            first_chunk_BC=first_BC,
        )
        if gradient:
            torch.cat(out, dim=2).sum().backward()  # type: ignore[no-untyped-call]


def _step(model: ModelConfig, dtype: torch.dtype) -> None:
    """A token inside of a chunk, and one that ends it."""
    layout = CacheLayout(model.chunk, model.window, 4 * model.chunk, model.summaries)
    cache = SummaryCache(layout, 1, model.num_kv_heads, model.head_width, dtype=dtype)
    for num_rows in (1, 1 + model.summaries):
        rows = Rows(
            *(
                torch.zeros(1, heads, num_rows, model.head_width, dtype=dtype)
                for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)
            )
        )
        cache.reset()
        places = cache.places(summaries=num_rows > 1)
        cache.advance(rows, places, places if num_rows > 1 else None, 1.0)


def _parts(model: ModelConfig, dtype: torch.dtype, context: int) -> None:
    """Attention over slots of any length up to the model's longest, for any number of streams."""
    heads, width = model.num_kv_heads, model.head_width
    lengths = {context, model.max_length, *(1 << i for i in range(7, model.max_length.bit_length()))}
    for length in sorted(lengths):
        cache = torch.empty(1, heads, length, width, dtype=dtype)
        for batch in range(1, _MOST_STREAMS + 1):
            for num_rows in (1, 1 + model.summaries):
                query = torch.empty(batch, model.num_heads, num_rows, width, dtype=dtype)
                index = torch.zeros(batch, num_rows, dtype=torch.int64)
                cache_attention(query, cache, cache, index, index, slot_B=index[:, 0])
