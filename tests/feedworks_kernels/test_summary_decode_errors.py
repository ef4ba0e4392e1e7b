"""What cache_attention and SummaryCache refuse, and how they say it; that a refusal changes nothing."""

from __future__ import annotations

import pytest
import torch

from feedworks_kernels import CacheLayout, Rows, SummaryCache, cache_attention

H, G, D = 4, 2, 8
LAYOUT = CacheLayout(chunk=4, window=2, capacity=24, summaries=2)


def rows(batch, number, heads=(H, G, G), width=D, dtype=torch.float32):
    return Rows(*(torch.randn(batch, n, number, width, dtype=dtype) for n in heads))


@pytest.fixture
def cache():
    """Slot 0 is empty, slot 1 at the end of a chunk, slot 2 full."""
    cache = SummaryCache(LAYOUT, 3, G, D)
    cache.prefill([1, 2], rows(2, 24), rows(2, 12), [7, 24])
    return cache


def call(**changes):
    ends = torch.tensor([[4], [9]])
    names = {
        "query_BHQD": torch.randn(2, H, 1, D),
        "key_NGLD": torch.randn(2, G, 9, D),
        "value_NGLD": torch.randn(2, G, 9, D),
        "start_BQ": ends - 4,
        "stop_BQ": ends,
    }
    return cache_attention(**names | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_BHQD": torch.zeros(2, H, D)}, r"query: expected float \(B, H, Q, D\) with D of"),
        ({"query_BHQD": torch.zeros(2, H, 1, D).long()}, "query: expected float"),
        ({"query_BHQD": torch.zeros(2, H, 1, 0)}, "query: expected float .* with D of 1 or more"),
        ({"key_NGLD": torch.zeros(2, G, 9, D + 1)}, r"key: expected torch.float32 \(N, G, L, 8\) like query"),
        (
            {"value_NGLD": torch.zeros(2, G, 9, D).half()},
            "value: expected torch.float32 .* got torch.float16",
        ),
        ({"value_NGLD": torch.zeros(2, G, 8, D)}, r"value: expected the shape of key, \(2, 2, 9, 8\)"),
        ({"query_BHQD": torch.zeros(2, 3, 1, D)}, "query has 3 heads: expected a multiple of key's 2"),
        (
            {"start_BQ": torch.zeros(2, 1)},
            r"start: expected int32 or int64 \(B, Q\) = \(2, 1\), got torch.flo",
        ),
        ({"stop_BQ": torch.zeros(2, 2).long()}, r"stop: expected int32 or int64 \(B, Q\) = \(2, 1\)"),
        (
            {"stop_BQ": torch.tensor([[4], [10]])},
            r"query \[1, 0\] reads rows 5 .. 10: expected a part of 0 .. 9",
        ),
        ({"start_BQ": torch.tensor([[-1], [1]])}, r"query \[0, 0\] reads rows -1 .. 4"),
        (
            {"key_NGLD": torch.zeros(3, G, 9, D), "value_NGLD": torch.zeros(3, G, 9, D)},
            "without slot they must",
        ),
        ({"slot_B": torch.tensor([0, 2])}, r"slot\[1\] = 2: expected 0 .. 1"),
        ({"slot_B": torch.tensor([0, -1])}, r"slot\[1\] = -1: expected 0 .. 1"),
        ({"slot_B": torch.tensor([0])}, r"slot: expected int32 or int64 \(B,\) = \(2,\)"),
        (
            {"query_BHQD": torch.zeros(2, H, 1, D, requires_grad=True)},
            "has no gradient: call it under torch.no",
        ),
        ({"key_NGLD": torch.zeros(2, G, 9, D, device="meta")}, "key lies on meta and query on cpu"),
        ({"slot_B": torch.zeros(2, device="meta", dtype=torch.int64)}, "slot lies on meta and query on cpu"),
    ],
)
def test_calls_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 0}, "chunk: expected an integer from 1 on, got 0"),
        ({"window": -1}, "window: expected an integer from 0 on, got -1"),
        ({"capacity": 2.5}, "capacity: expected an integer from 1 on, got 2.5"),
        ({"summaries": 0}, "summaries: expected an integer from 1 on, got 0"),
        ({"window": True}, "window: expected an integer from 0 on, got True"),
    ],
)
def test_layouts_that_make_no_cache(change, message):
    with pytest.raises(ValueError, match=message):
        SummaryCache(LAYOUT._replace(**change), 3, G, D)


def test_caches_that_cannot_be():
    with pytest.raises(ValueError, match="num_slots: expected an integer from 1 on, got 0"):
        SummaryCache(LAYOUT, 0, G, D)
    with pytest.raises(ValueError, match=r"dtype: expected one of torch\.float32"):
        SummaryCache(LAYOUT, 1, G, D, dtype=torch.int8)


@pytest.mark.parametrize(
    ("slots", "sizes", "lengths", "message"),
    [
        ([3], (1, 8, 4), None, r"slot 3: expected 0 .. 2"),
        ([-1], (1, 8, 4), None, r"slot -1: expected 0 .. 2"),
        ([0, 0], (2, 8, 4), None, r"slots \[0, 0\]: expected each once"),
        ([1], (1, 8, 4), None, "slot 1 holds a sequence of 7 tokens: reset it before prefill"),
        (
            [0],
            (1, 25, 14),
            None,
            r"has 25 tokens: expected 0 .. 24 \(25 rows are given, the capacity is 24\)",
        ),
        ([0], (1, 8, 4), [9], r"has 9 tokens: expected 0 .. 8 \(8 rows"),
        ([0], (1, 8, 4), [-1], "has -1 tokens"),
        ([0], (1, 8, 3), None, "has 8 tokens and 4 summaries: got 3"),
        ([0], (2, 8, 4), None, r"text key: expected torch.float32 \(1, 2, 8, 8\) like the cache"),
        ([0], (1, 8, 4), [8, 8], "lengths: expected one for each of the 1 slots, got 2"),
    ],
)
def test_prompts_that_do_not_fit(cache, slots, sizes, lengths, message):
    before = cache.length_N.clone()
    with pytest.raises(ValueError, match=message):
        cache.prefill(slots, rows(sizes[0], sizes[1]), rows(sizes[0], sizes[2]), lengths)
    assert torch.equal(cache.length_N, before)


def test_prompts_of_another_type_or_head_count(cache):
    with pytest.raises(ValueError, match=r"text key: expected torch.float32 .* got torch.float64"):
        cache.prefill([0], rows(1, 8, dtype=torch.float64), rows(1, 4))
    with pytest.raises(ValueError, match=r"summary key: expected torch.float32 \(1, 2, 4, 8\)"):
        cache.prefill([0], rows(1, 8), rows(1, 4, heads=(H, H, H)))


def test_prompts_with_a_gradient(cache):
    text = rows(1, 8)
    text.key_BGTD.requires_grad_()
    with pytest.raises(ValueError, match=r"prefill has no gradient: make it under torch.no_grad\(\)"):
        cache.prefill([0], text, rows(1, 4))
    with torch.no_grad():
        cache.prefill([0], text, rows(1, 4))
    assert not cache.key_NGLD.requires_grad


@pytest.mark.parametrize(
    ("slots", "ending", "message"),
    [
        ([0, 2], None, "slot 2 is full: 24 tokens are its capacity; reset it or reserve more"),
        ([0, 3], None, "slot 3: expected 0 .. 2"),
        ([0, -2], None, "slot -2: expected 0 .. 2"),
        ([0, 0], None, r"slots \[0, 0\]: expected each once"),
        ([0, 1], [0, 0], r"ending \[0, 0\]: expected each once"),
        ([0, 1], [2, 1], r"ending \[1, 2\]: expected places in slot, 0 .. 1"),
        ([0, 1], "none", r"slot 1: this token ends a chunk \(token 7\): its summaries are needed"),
        ([1, 0], [1, -3], "expected places in slot"),
    ],
)
def test_steps_that_cannot_be_made(cache, slots, ending, message):
    state = [x.clone() for x in (cache.length_N, cache.key_NGLD.nan_to_num())]
    names = {} if ending in (None, "none") else {"ending_S": torch.tensor(ending)}
    with pytest.raises(ValueError, match=message):
        cache.step(rows(2, 1), None if ending == "none" else rows(2, 2), slot_B=torch.tensor(slots), **names)
    assert torch.equal(cache.length_N, state[0])
    assert torch.equal(cache.key_NGLD.nan_to_num(), state[1])


def test_rows_that_do_not_fit(cache):
    slot = torch.tensor([0, 1])
    for text, summary, names, message in [
        (rows(2, 2), rows(2, 2), {}, r"text query: expected torch.float32 \(2, 4, 1, 8\) like the cache"),
        (rows(2, 1), rows(2, 1), {}, r"summary query: expected torch.float32 \(2, 4, 2, 8\)"),
        (rows(2, 1), rows(2, 2), {"ending_S": slot[:1]}, r"summary query: expected torch.float32 \(1, 4, 2"),
        (
            rows(2, 1, (3, G, G)),
            rows(2, 2),
            {},
            "text query has 3 heads: expected a multiple of the cache's 2",
        ),
        (rows(2, 1), None, {"ending_S": slot}, "ending names sequences whose summaries are given"),
        (rows(2, 1), rows(2, 2), {"ending_S": slot.int()}, "ending: expected int64"),
        (rows(3, 1), rows(3, 2), {}, r"places are for .* = \(2, 3, 6\): expected \(3, 3, 6\)"),
        (Rows(*(x.requires_grad_() for x in rows(2, 1))), rows(2, 2), {}, "a step has no gradient"),
    ]:
        with pytest.raises(ValueError, match=message):
            cache.step(text, summary, slot_B=slot, **names)
    with pytest.raises(ValueError, match=r"slot: expected int64 \(B,\) on cpu"):
        cache.step(rows(2, 1), rows(2, 2), slot_B=slot.float())
    other = SummaryCache(LAYOUT._replace(chunk=5), 3, G, D).places(slot)
    with pytest.raises(
        ValueError, match=r"places are for .* = \(2, 3, 7\): expected \(2, 3, 6\); make them by"
    ):
        cache.step(rows(2, 1), rows(2, 2), places=other)
    assert cache.length_N.tolist() == [0, 7, 24]


def test_a_step_that_nobody_checked_is_nan_and_changes_nothing(cache, monkeypatch):
    """As on CUDA, where looking costs a wait."""
    from feedworks_kernels.summary_decode import cache_checks

    monkeypatch.setattr(cache_checks, "check_step", lambda *_, **__: None)
    kept = cache.key_NGLD[:, :, : cache.layout.spare_row].clone()
    # Slot 1 ends a chunk whose summaries are missing; slot 2 is full; slot 7 is not there; -1 is no one.
    out = cache.step(rows(5, 1), slot_B=torch.tensor([1, 2, 0, 7, -1])).text_BHQD
    assert out.isnan().any(dim=(1, 2, 3)).tolist() == [True, True, False, True, False]
    assert not out[4].any()
    assert cache.length_N.tolist() == [1, 7, 24]
    changed = (cache.key_NGLD[:, :, : cache.layout.spare_row] != kept) & ~kept.isnan()
    assert not changed[1:].any()


def test_reset_and_reserve(cache):
    with pytest.raises(ValueError, match=r"slot 3: expected 0 .. 2"):
        cache.reset([3])
    with pytest.raises(
        ValueError, match="capacity: expected an integer from 24, the present one, on, got 23"
    ):
        cache.reserve(23)
    with pytest.raises(ValueError, match=r"length 25: expected 0 .. 24, the capacity"):
        cache.used_bytes([25])
    assert cache.used_bytes() == cache.used_bytes([0, 7, 24])
    cache.reset([1])
    assert cache.length_N.tolist() == [0, 0, 24]
    cache.reset()
    assert cache.used_bytes() == 0
