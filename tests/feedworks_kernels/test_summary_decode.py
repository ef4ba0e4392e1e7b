"""Decoding from the summary cache is the prefill's row: every step, across ring wraps and chunk borders."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import library

from feedworks_kernels import CacheLayout, Rows, SummaryCache, cache_attention, summary_attention
from feedworks_kernels.testing import TOLERANCE, forced, poisoned_memory

H, G, D = 4, 2, 8
FORMS = ("reference", "eager")
eager = importlib.import_module("feedworks_kernels.summary_decode.eager")
registration = importlib.import_module("feedworks_kernels.summary_decode.registration")


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
    cache = SummaryCache(layout, num_slots, heads[1], heads[2], dtype=dtype)
    # Rows that nothing wrote must not matter: stale ones lie there once slots are used again.
    cache.key_NGLD.fill_(torch.nan)
    cache.value_NGLD.fill_(torch.nan)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(4, 4, 16), (8, 2, 64), (16, 1, 20)])
def test_each_type(dtype, heads):
    layout = CacheLayout(4, 3, 60, 2)
    data = sequences(layout, 4, layout.capacity, dtype, heads=heads)
    cache = poisoned_cache(layout, 4, dtype, heads)
    lengths = [0, 17, 35, 8]
    cache.prefill(range(4), *data[:2], lengths)
    decode(cache, data, list(range(4)), lengths, 25, dtype)


def random_call(dtype=torch.float64, seed=0, num_batch=5):
    """Arguments of cache_attention: some slices empty, slots shared by several sequences."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(num_batch, H, 3, D, generator=generator, dtype=dtype)
    key, value = (torch.randn(4, G, 40, D, generator=generator, dtype=dtype) for _ in range(2))
    start, stop = (torch.randint(0, 41, (num_batch, 3), generator=generator) for _ in range(2))
    return query, key, value, start, stop, torch.randint(0, 4, (num_batch,), generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_forms_agree_with_the_definition(seed):
    arguments = random_call(seed=seed)
    with forced("reference"):
        expected = cache_attention(*arguments[:5], slot_B=arguments[5])
    assert expected.eq(0).all(dim=-1).any()
    for form in (eager.cache_attention, eager.masked):
        with poisoned_memory():
            close(form(*arguments, D**-0.5), expected, torch.float64)
    # What lies outside of every slice may be anything.
    _, key, value, start, stop, slot = arguments
    row = torch.arange(40)
    for n in range(4):
        read = ((row >= start[slot == n][..., None]) & (row < stop[slot == n][..., None])).any(dim=(0, 1))
        key[n, :, ~read], value[n, :, ~read] = torch.nan, torch.nan
    for form in (eager.cache_attention, eager.masked):
        close(form(*arguments, D**-0.5), expected, torch.float64)


def test_impossible_slices_are_nan_where_nobody_looked():
    query, key, value, *_ = random_call()
    start = torch.tensor([[0, -1, 3], [0, 0, 0], [1, 2, 3], [0, 0, 0], [9, 9, 9]])
    stop = torch.tensor([[5, 4, 41], [1, 1, 1], [9, 2, 1], [1, 1, 1], [40, 40, 40]])
    arguments = (query, key, value, start, stop, torch.tensor([0, 4, 2, -1, 3]))
    bad = [[False, True, True], [True] * 3, [False] * 3, [True] * 3, [False] * 3]
    for form in FORMS:
        module = importlib.import_module(f"feedworks_kernels.summary_decode.{form}")
        assert module.cache_attention(*arguments, 0.5).isnan().any(dim=(1, 3)).tolist() == bad
    assert eager.masked(*arguments, 0.5).isnan().any(dim=(1, 3)).tolist() == bad


def test_strides_do_not_matter():
    query, key, value, *rest = random_call()
    expected = cache_attention(query, key, value, *rest[:2], slot_B=rest[2])
    wide = torch.full((*key.shape[:3], D + 5), torch.nan, dtype=key.dtype)
    wide[..., 3:-2] = key
    far = torch.stack([rest[0], rest[1]], dim=2)
    got = cache_attention(
        query.transpose(1, 2).contiguous().transpose(1, 2),
        wide[..., 3:-2],
        value.transpose(2, 3).contiguous().transpose(2, 3),
        far[..., 0],
        far[..., 1],
        slot_B=rest[2].int(),
    )
    close(got, expected, torch.float64)


def test_nothing_to_do():
    query, key, value, start, stop, slot = random_call()
    for form in FORMS:
        with forced(form):
            nothing = cache_attention(query[:0], key, value, start[:0], stop[:0], slot_B=slot[:0])
            no_rows = cache_attention(query[:, :, :0], key, value, start[:, :0], stop[:, :0], slot_B=slot)
            empty = cache_attention(query, key[:, :, :0], value[:, :, :0], start * 0, start * 0, slot_B=slot)
        assert nothing.shape == (0, H, 3, D)
        assert no_rows.shape == (5, H, 0, D)
        assert torch.equal(empty, torch.zeros_like(query))


def test_the_operators_of_torch_are_sound():
    library.opcheck(registration.cache_attention, (*random_call(), 0.5))
    cache = SummaryCache(CacheLayout(4, 3, 60, 2), 3, G, D)
    places = cache.places(torch.tensor([2, 0]))
    new = torch.randn(2, G, 3, D)
    caches = cache.key_NGLD.zero_(), cache.value_NGLD.zero_()
    library.opcheck(registration.cache_write, (*caches, new, new, places.slot_B, places.write_BQ))
    library.opcheck(registration.cache_move, (*caches, places.slot_B, places.move_BP))


class Decoder(torch.nn.Module):
    """What a program to export holds."""

    def forward(self, query, key, value, start, stop, slot):
        return cache_attention(query, key, value, start, stop, slot_B=slot) + 0


def test_compiles_and_exports():
    arguments = random_call(torch.float32)
    expected = Decoder()(*arguments)
    compiled = torch.compile(Decoder(), fullgraph=True, backend="aot_eager")
    close(compiled(*arguments), expected, torch.float32)
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = tuple({0: batch} if i not in (1, 2) else None for i in range(6))
    program = torch.export.export(Decoder(), arguments, dynamic_shapes=dynamic)
    assert any("cache_attention" in str(node.target) for node in program.graph.nodes)
    more = random_call(torch.float32, seed=1, num_batch=7)
    close(program.module()(*more), Decoder()(*more), torch.float32)


@pytest.mark.parametrize("window", [1, 4, None])
def test_a_cache_that_grows_keeps_its_rows(window):
    """Its ring grows too, where the window is wider than the first capacity."""
    layout = CacheLayout(2, window, 5, 2)
    data = sequences(layout, 2, 30)
    cache = poisoned_cache(layout, 2)
    cache.prefill([1, 0], *data[:2], [5, 3])
    with poisoned_memory():
        cache.reserve(30)
    decode(cache, data, [1, 0], [5, 3], 25)


@pytest.mark.parametrize("junk", [1e30, torch.inf, torch.nan])
@pytest.mark.parametrize("spare_bytes", [0, 1 << 12, 1 << 30])
@pytest.mark.parametrize("slots", [[0, 1, 2, 3], [5, 1, 6, 0, 2], [4, 4, 3], [7]])
def test_slots_together_read_their_own_rows_alone(monkeypatch, slots, spare_bytes, junk):
    monkeypatch.setattr(eager, "_CALL_BYTES", spare_bytes)
    generator = torch.Generator().manual_seed(len(slots))
    key, value = (torch.randn(8, G, 40, D, generator=generator, dtype=torch.float64) for _ in range(2))
    query = torch.randn(len(slots), H, 2, D, generator=generator, dtype=torch.float64)
    start = torch.randint(0, 20, (len(slots), 2), generator=generator)
    stop = start + torch.randint(0, 20, (len(slots), 2), generator=generator)
    seen = torch.zeros(8, 40, dtype=torch.bool)
    for slot, starts, stops in zip(slots, start.tolist(), stop.tolist(), strict=True):
        for first, last in zip(starts, stops, strict=True):
            seen[slot, first:last] = True
    for cache in (key, value):
        cache.masked_fill_(~seen[:, None, :, None], junk)
    args = query, key, value, start, stop
    found, expected = (attention_by(form, *args, slot_B=torch.tensor(slots)) for form in FORMS[::-1])
    torch.testing.assert_close(found, expected, equal_nan=True)


def attention_by(form, *args, **kwargs):
    with forced(form):
        return cache_attention(*args, **kwargs)


def test_neighbours_go_together_where_that_is_cheap():
    def runs(spare, *slices):
        found = eager._runs([eager._Slice(number, *each) for number, each in enumerate(slices)], spare)
        return [[each.slot for each in run.slices] for run in found]

    assert runs(10, (1, 0, 5), (0, 0, 5), (2, 3, 6)) == [[0, 1, 2]]
    assert runs(10, (0, 0, 5), (2, 0, 5)) == [[0, 2]]  # over a slot that is not asked for
    assert runs(4, (0, 0, 5), (2, 0, 5)) == [[0], [2]]
    assert runs(10, (0, 0, 5), (1, 0, 50)) == [[0], [1]]
    assert runs(0, (0, 0, 5), (1, 0, 5)) == [[0], [1]]
    assert runs(10, (0, 0, 5), (0, 0, 5)) == [[0], [0]]
