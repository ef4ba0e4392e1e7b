"""Decoding from the summary cache is the prefill's row: every step, across ring wraps and chunk borders."""

from __future__ import annotations

import pytest
import torch

from feedworks_kernels import CacheLayout, Rows, SummaryCache, summary_attention
from feedworks_kernels.testing import TOLERANCE, forced, poisoned_memory

H, G, D = 4, 2, 8
FORMS = ("reference", "eager")


def sequences(layout, batch, num_text, dtype=torch.float64, seed=0, heads=(H, G, D)):
    """Random rows of whole sequences, and what every row of them gives in one pass, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    num_summaries = layout.summaries * -(-num_text // layout.chunk)
    num_heads, num_groups, width = heads

    def rows(length):
        shapes = [(batch, number, length, width) for number in (num_heads, num_groups, num_groups)]
        return Rows(
            *(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
        )

    text, summary = rows(num_text), rows(num_summaries)
    with forced("reference"):
        expected = summary_attention(
            Rows(*(x.double() for x in text)),
            Rows(*(x.double() for x in summary)),
            chunk=layout.chunk,
            window=layout.window,
            summaries=layout.summaries,
        )
    return text, summary, expected


def at(rows, batch, start, stop):
    """Rows start .. stop - 1 of each sequence; `start` one number per sequence."""
    pieces = [[x[b, :, i : i + stop] for b, i in zip(batch, start, strict=True)] for x in rows]
    return Rows(*(torch.stack(piece) for piece in pieces))


def close(got, expected, dtype):
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], check_dtype=False)


def poisoned_cache(layout, num_slots, dtype=torch.float64, heads=(H, G, D)):
    with poisoned_memory():
        cache = SummaryCache(layout, num_slots, heads[1], heads[2], dtype=dtype)
    assert cache.key_NGLD.isnan().all()
    return cache


def decode(cache, data, slots, lengths, num_steps, dtype=torch.float64):
    """Step sequences that stand at `lengths`, and compare each row with that of one pass."""
    text, summary, expected = data
    layout, lengths = cache.layout, list(lengths)
    batch = range(len(lengths))
    for _ in range(num_steps):
        chunks = [length // layout.chunk * layout.summaries for length in lengths]
        ends = [length % layout.chunk == layout.chunk - 1 for length in lengths]
        out = cache.step(
            at(text, batch, lengths, 1),
            at(summary, batch, chunks, layout.summaries),
            slot_B=torch.tensor(slots),
        )
        for b in batch:
            close(out.text_BHQD[b, :, 0], expected.text_BHTD[b, :, lengths[b]], dtype)
            expected_Hm = expected.summary_BHSD[b, :, chunks[b] : chunks[b] + layout.summaries]
            close(out.summary_BHmD[b], expected_Hm * ends[b], dtype)
        lengths = [length + 1 for length in lengths]
    assert cache.length_N[slots].tolist() == lengths


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("summaries", [1, 2, 3])
@pytest.mark.parametrize("window", [0, 1, 3, 50, None])
@pytest.mark.parametrize("chunk", [1, 4])
def test_each_step_is_the_row_of_one_pass(form, summaries, window, chunk):
    layout = CacheLayout(chunk, window, 3 * 4 * chunk * 2 + 11, summaries)
    data = sequences(layout, 4, layout.capacity)
    cache = poisoned_cache(layout, 6)
    lengths, slots = [0, 1, 2 * chunk, 9], [5, 0, 3, 2]
    with forced(form):
        cache.prefill(slots, *data[:2], lengths)
        decode(cache, data, slots, lengths, layout.capacity - max(lengths))
