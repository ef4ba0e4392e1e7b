"""cache_attention's Triton kernels against the definition; test_summary_decode_kernel.py starts this.

On CUDA, or with TRITON_INTERPRET=1 (it must stand before triton is imported) in the interpreter on the CPU.
"""

from __future__ import annotations

import importlib
import os

import pytest
import torch

from feedworks_kernels import CacheLayout, Rows, SummaryCache, cache_attention, summary_attention
from feedworks_kernels.testing import TOLERANCE, assert_close, forced, poisoned_memory

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# B, H, G, Q, N, L, D: one to many heads per key head, odd widths, more heads than a tile has rows.
SHAPES = [
    (2, 4, 2, 1, 3, 90, 64),
    (3, 8, 2, 2, 3, 260, 128),
    (1, 5, 1, 3, 2, 133, 20),
    (4, 2, 2, 1, 2, 40, 16),
    (1, 70, 1, 1, 1, 70, 24),
]
kernel = importlib.import_module("feedworks_kernels.summary_decode.kernel")


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    """Small slices are cut too, from 32 rows on; where a test sets more, they are not."""
    monkeypatch.setattr(kernel, "_LEAST_ROWS", 16)
    with forced("triton"):
        yield


def random_call(shape, dtype, seed=0):
    num_batch, num_heads, num_groups, num_queries, num_slots, num_rows, width = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(num_batch, num_heads, num_queries, width, generator=generator)
    caches = [torch.randn(num_slots, num_groups, num_rows, width, generator=generator) for _ in range(2)]
    start = torch.randint(0, num_rows // 3, (num_batch, num_queries), generator=generator)
    stop = torch.randint(num_rows // 3, num_rows + 1, (num_batch, num_queries), generator=generator)
    start[0, -1], stop[-1, 0] = 0, num_rows
    slot = torch.randint(0, num_slots, (num_batch,), generator=generator)
    return [x.to(DEVICE, dtype) for x in (query, *caches)] + [x.to(DEVICE) for x in (start, stop, slot)]


def call(arguments):
    return cache_attention(*arguments[:5], slot_B=arguments[5])


def definition(arguments):
    with forced("reference"):
        return call([x.double() for x in arguments[:3]] + arguments[3:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("least_rows", [16, 1000], ids=["cut", "whole"])
def test_equals_the_definition(shape, dtype, least_rows, monkeypatch):
    monkeypatch.setattr(kernel, "_LEAST_ROWS", least_rows)
    arguments = random_call(shape, dtype)
    with poisoned_memory():
        got = call(arguments)
    assert got.dtype == dtype
    assert_close(got, definition(arguments), dtype)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 127, 200])
def test_every_length_of_the_last_tile(length):
    arguments = random_call((2, 4, 2, 1, 2, 200, 64), torch.float32, seed=length)
    arguments[3] = torch.tensor([[0], [200 - length]], device=DEVICE)
    arguments[4] = arguments[3] + length
    expected = definition(arguments)
    for cache in arguments[1:3]:  # nothing outside the slices is read
        for b, slot in enumerate((0, 1)):
            keep = cache[slot, :, arguments[3][b, 0] : arguments[4][b, 0]].clone()
            cache[slot] = torch.nan
            cache[slot, :, arguments[3][b, 0] : arguments[4][b, 0]] = keep
    arguments[5] = torch.tensor([0, 1], device=DEVICE)
    expected = definition(arguments)
    assert not expected.isnan().any()
    with poisoned_memory():
        assert_close(call(arguments), expected, torch.float32)


def test_impossible_slices_are_nan_and_no_one_elses():
    arguments = random_call((6, 4, 2, 1, 3, 90, 16), torch.float32)
    arguments[3] = torch.tensor([[-1], [5], [0], [7], [2**40], [3]], device=DEVICE)
    arguments[4] = torch.tensor([[4], [91], [90], [7], [2**40], [2]], device=DEVICE)
    arguments[5] = torch.tensor([0, 1, 2, 1, 0, 3], device=DEVICE)
    # Past the checks, which only a CPU can make.
    got = kernel.cache_attention(*arguments, 0.3)
    expected = definition_form(arguments, 0.3)
    assert got.isnan().any(dim=(1, 2, 3)).tolist() == [True, True, False, False, True, True]
    assert got[3].eq(0).all()
    assert_close(got, expected, torch.float32)


def definition_form(arguments, scale):
    reference = importlib.import_module("feedworks_kernels.summary_decode.reference")
    return reference.cache_attention(*arguments, scale)


def test_strides_do_not_matter(monkeypatch):
    monkeypatch.setattr(kernel, "_LEAST_ROWS", 1000)  # several tiles in one part
    arguments = random_call(SHAPES[0], torch.float32)
    arguments[3], arguments[4] = arguments[3] * 0, arguments[4] * 0 + 90
    expected = definition(arguments)
    query, key, value = arguments[:3]
    wide = torch.full((*key.shape[:3], 70), torch.nan, device=DEVICE)
    wide[..., 3:67] = key
    views = [
        [query.transpose(1, 2).contiguous().transpose(1, 2), key, value],
        [query, wide[..., 3:67], value.transpose(1, 2).contiguous().transpose(1, 2)],
        [query, key.transpose(2, 3).contiguous().transpose(2, 3), value],
    ]
    for view in views:
        assert_close(call(view + arguments[3:]), expected, torch.float32)


@pytest.mark.parametrize("far", ["slot", "head", "row"])
def test_places_beyond_2_to_31(far):
    """Memory that is never touched costs nothing. Each stride alone is below 2^31, the place is not."""
    rows, width, large = 40, 16, 2**30 + 48
    slot_stride, head_stride, row_stride = {
        "slot": (large, rows * width, width),
        "head": (rows * width, large, width),
        "row": (width, width, large),
    }[far]
    sizes = {"slot": (3, 2, rows), "head": (1, 3, rows), "row": (1, 1, 3)}[far]
    storage = torch.empty(2 * large + 4 * rows * width, dtype=torch.bfloat16, device=DEVICE)
    arguments = random_call((2, 6, sizes[1], 1, sizes[0], sizes[2], width), torch.bfloat16)
    near = arguments[1]
    arguments[1] = storage.as_strided((*sizes, width), (slot_stride, head_stride, row_stride, 1))
    arguments[1].copy_(near)
    arguments[5] = torch.tensor([sizes[0] - 1, 0], device=DEVICE)
    expected = definition([arguments[0], near, *arguments[2:]])
    assert_close(call(arguments), expected, torch.bfloat16)


def test_nothing_to_do():
    for shape in [(0, 4, 2, 1, 3, 9, 16), (2, 4, 2, 0, 3, 9, 16)]:
        arguments = random_call((2, 4, 2, 1, 3, 9, 16), torch.float32)
        arguments[0] = arguments[0].new_empty(shape[0], 4, shape[3], 16)
        arguments[3:] = [x[: shape[0], : shape[3]] for x in arguments[3:5]] + [arguments[5][: shape[0]]]
        assert call(arguments).shape == arguments[0].shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [1, None])
def test_cache_steps_are_the_rows_of_one_pass(dtype, window):
    layout = CacheLayout(chunk=2, window=window, capacity=12, summaries=2)
    generator = torch.Generator().manual_seed(1)

    def rows(length):
        shapes = [(3, number, length, 16) for number in (4, 2, 2)]
        return Rows(*(torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes))

    text, summary = rows(12), rows(12)
    with forced("reference"):
        exact = [Rows(*(x.double() for x in part)) for part in (text, summary)]
        expected = summary_attention(*exact, chunk=2, window=window, summaries=2)
    cache = SummaryCache(layout, 4, 2, 16, dtype=dtype, device=DEVICE)
    cache.key_NGLD.fill_(torch.nan)
    cache.value_NGLD.fill_(torch.nan)
    lengths, slot = torch.tensor([0, 3, 5]), torch.tensor([3, 1, 0])
    cache.prefill(slot.tolist(), text, summary, lengths.tolist())
    for step in range(7):
        at = [(b, int(length) + step) for b, length in enumerate(lengths)]
        out = cache.step(
            Rows(*(torch.stack([x[b, :, t : t + 1] for b, t in at]) for x in text)),
            Rows(*(torch.stack([x[b, :, t // 2 * 2 : t // 2 * 2 + 2] for b, t in at]) for x in summary)),
            slot_B=slot.to(DEVICE),
        )
        for b, t in at:
            limit = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype], "check_dtype": False}
            torch.testing.assert_close(out.text_BHQD[b, :, 0], expected.text_BHTD[b, :, t], **limit)
            own = expected.summary_BHSD[b, :, t // 2 * 2 : t // 2 * 2 + 2] * (t % 2)
            torch.testing.assert_close(out.summary_BHmD[b], own, **limit)


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_steps_replay_from_a_graph():
    """A step waits for nothing, so a graph captures it, and a replay goes on from the state it finds."""
    layout = CacheLayout(chunk=4, window=2, capacity=40, summaries=1)
    caches = [SummaryCache(layout, 3, 2, 64, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    new = [torch.randn(3, heads, 1, 64, device=DEVICE, dtype=torch.bfloat16) for heads in (4, 2, 2) * 2]
    rows = Rows(*new[:3]), Rows(*new[3:])
    slot = torch.tensor([2, 0, -1], device=DEVICE)
    caches[1].step(*rows, slot_B=slot)  # compiles the kernels
    caches[1].reset()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = caches[1].step(*rows, slot_B=slot)
    caches[1].reset()
    for _ in range(25):
        for x in new:
            x.normal_()
        torch.cuda.set_sync_debug_mode("error")
        try:
            expected = caches[0].step(*rows, slot_B=slot)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph.replay()
        assert_close(out.text_BHQD, expected.text_BHQD, torch.bfloat16)
        assert_close(out.summary_BHmD, expected.summary_BHmD, torch.bfloat16)
    assert caches[1].length_N.tolist() == caches[0].length_N.tolist() == [25, 0, 25]


@pytest.mark.skipif(INTERPRETED, reason="programs run one after the other there")
def test_runs_agree_bit_by_bit():
    arguments = random_call((4, 8, 2, 2, 4, 3000, 128), torch.bfloat16)
    first = call(arguments)
    for _ in range(20):
        assert torch.equal(call(arguments), first)
