"""The cache: prefill is decoding, bytes are the paper's formula, and an error tears no sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from feedworks.errors import ConfigError
from feedworks.ksa import plans
from feedworks.ksa.architecture import Qwen3KsaConfig, hybrid_windows
from feedworks.ksa.cache import KsaCache, formula_bytes
from feedworks.ksa.model import Qwen3KsaForCausalLM

from . import decoders

T = 61
IDS = decoders.tokens(4, T)
LENGTHS = (5, 17, 30, 8)  # inside a chunk, one token into one, two into one, at a border
KINDS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "two summaries": {"summaries": 2},
    "two summaries annealed": {"summaries": 2, "summary_weight": 0.3},
    "bypass": {"summary_bypass": True},
    "no window": {"windows": [0, 0, 0, 0]},
    "chunks of one": {"chunk": 1, "windows": [5, 0, 2, None]},
    "raw": {"windows": [None] * 4},
    "full": {"summaries": 0, "windows": [None] * 4},
}


def decoder(**settings: Any) -> Qwen3KsaForCausalLM:
    return decoders.decoder(**settings).double()


def cache_of(model: Qwen3KsaForCausalLM, num_slots: int = 4, capacity: int = T) -> KsaCache:
    return KsaCache(model.config, num_slots, capacity, dtype=model.dtype)


@torch.no_grad()
def rows(model: Qwen3KsaForCausalLM) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_prefill_token_by_token(kind: str) -> None:
    """Batch 4 of unequal lengths, slots out of order, over two rounds of the ring and more."""
    model = decoder(**KINDS[kind])
    expected, cache, slots = rows(model), cache_of(model), [2, 0, 3, 1]
    found = model.prefill(IDS[:, :30], LENGTHS, cache, slots)
    place = list(LENGTHS)
    torch.testing.assert_close(found, expected[range(4), [n - 1 for n in place]], atol=1e-10, rtol=0)
    rings = max(window for window in model.config.windows if window is not None) if kind not in RAW else 0
    assert T - max(LENGTHS) > 2 * rings * model.config.chunk
    while active := [b for b in range(4) if place[b] < T]:
        active = active[::-1]
        token_B = IDS[active, [place[b] for b in active]]
        found = model.decode(token_B, cache, [slots[b] for b in active])
        torch.testing.assert_close(found, expected[active, [place[b] for b in active]], atol=1e-10, rtol=0)
        for b in active:
            place[b] += 1
    assert cache.lengths == [T] * 4


RAW = ("raw", "full")


@pytest.mark.parametrize("kind", ["hybrid", "full"])
def test_a_sequence_may_start_with_its_first_token(kind: str) -> None:
    model = decoder(**KINDS[kind])
    expected, cache = rows(model), cache_of(model, 1, 20)
    for place in range(20):
        found = model.decode(IDS[:1, place], cache, [0])
        torch.testing.assert_close(found[0], expected[0, place], atol=1e-10, rtol=0)
    assert not cache.free_slots()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_other_types(dtype: torch.dtype) -> None:
    model = decoders.decoder().to(dtype)
    expected, cache = rows(model), cache_of(model)
    model.prefill(IDS[:, :30], LENGTHS, cache, range(4))
    places = torch.tensor(LENGTHS)
    error = []
    for _ in range(20):
        found = model.decode(IDS[range(4), places], cache, range(4))
        error.append((found - expected[range(4), places]).abs().max().item())
        places += 1
    assert max(error) < {torch.bfloat16: 0.5, torch.float32: 5e-5}[dtype]


@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_cache_in_another_type_than_the_model(held: torch.dtype, autocast: bool) -> None:
    """Half the bytes, or an evaluation within mixed-precision training."""
    model = decoders.decoder()
    expected, cache = rows(model), KsaCache(model.config, 4, T, dtype=held)
    places, error = torch.tensor(LENGTHS), []
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = model.prefill(IDS[:, :30], LENGTHS, cache, range(4))
        for step in range(12):
            error.append((found - expected[range(4), places - 1]).abs().max().item())
            if step == 6:
                found = torch.stack([model.extend(IDS[b, [places[b]]], cache, b) for b in range(4)])
            else:
                found = model.decode(IDS[range(4), places], cache, range(4))
            places += 1
    assert cache.dtype == held
    assert max(error) < (0.5 if autocast or held == torch.bfloat16 else 5e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert model.generate(IDS[:, :9], max_new_tokens=5, pad_token_id=decoders.PAD).shape == (4, 14)


def test_what_lies_in_a_slot_that_was_used_is_not_read() -> None:
    model = decoder(summaries=2)
    cache = cache_of(model)
    for ring in cache.rings:
        ring.key_NGLD.fill_(torch.nan)
        ring.value_NGLD.fill_(torch.nan)
    expected = rows(model)
    for b, slot in ((0, 1), (3, 1), (2, 1)):
        assert slot in cache.free_slots()
        model.prefill(IDS[b : b + 1, :30], [LENGTHS[b]], cache, [slot])
        for place in range(LENGTHS[b], LENGTHS[b] + 9):
            found = model.decode(IDS[b : b + 1, place], cache, [slot])
            torch.testing.assert_close(found[0], expected[b, place], atol=1e-10, rtol=0)
        cache.reset([slot])
        assert cache.used_bytes() == 0


SHAPE = {
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "num_hidden_layers": 8,
}
TOKENS = tuple(1024 * 2**power for power in range(2, 8))


@pytest.mark.parametrize("length", TOKENS)
@pytest.mark.parametrize("full_every", [0, 4])
def test_bytes_are_the_formula(length: int, full_every: int) -> None:
    """4K to 128K: allocated within 1 % of what the paper's formula needs, and the ratio to full attention."""
    config = Qwen3KsaConfig(**SHAPE, windows=hybrid_windows(8, 128, full_every))
    cache = KsaCache(config, 1, length)
    needed = formula_bytes(config, length, 4)
    by_hand = 8 * min(length // 8, 128) + length // 8 + length % 8
    num_full = 8 // full_every if full_every else 0
    assert needed == 2 * 1 * 2 * 4 * (num_full * length + (8 - num_full) * by_hand)
    assert cache.used_bytes([length]) == needed
    assert 1 <= cache.num_bytes / needed < 1.01
    full = Qwen3KsaConfig(**SHAPE, windows=[None] * 8, summaries=0)
    assert formula_bytes(full, length, 4) == 8 * length * 2 * 2 * 4
    assert KsaCache(full, 1, length).num_bytes < 1.001 * formula_bytes(full, length, 4)
    if length == TOKENS[-1]:  # arXiv 2604.24432: 7.53 and 2.86 at 128K
        ratio = KsaCache(full, 1, length).num_bytes / cache.num_bytes
        assert abs(ratio - (2.86 if full_every else 7.53)) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_in_use_follow_the_formula_at_every_length(kind: str) -> None:
    model = decoder(**KINDS[kind])
    cache = cache_of(model, 2)
    model.prefill(IDS[:2, :9], [9, 3], cache, [1, 0])
    for place in range(3, 40):
        assert cache.used_bytes() == sum(formula_bytes(model.config, length, 8) for length in cache.lengths)
        model.decode(IDS[:1, place], cache, [0])
    assert cache.num_bytes >= cache.used_bytes([T, T])
    cache.reset([1])
    assert cache.used_bytes() == formula_bytes(model.config, 40, 8)
    cache.reset()
    assert (cache.used_bytes(), cache.free_slots()) == (0, [0, 1])


@pytest.mark.parametrize("kind", ["hybrid", "two summaries", "bypass", "full"])
def test_a_cache_that_grows(kind: str) -> None:
    model = decoder(**KINDS[kind])
    expected, cache = rows(model), cache_of(model, 4, 31)
    model.prefill(IDS[:, :30], LENGTHS, cache, range(4))
    places = torch.tensor(LENGTHS)
    for step in range(29):
        if step == 1:
            cache.reserve(45)
        if step == 15:
            cache.make_room(46)
        found = model.decode(IDS[range(4), places], cache, range(4))
        torch.testing.assert_close(found, expected[range(4), places], atol=1e-10, rtol=0)
        places += 1
    assert cache.get_max_length() == 67  # half as much again
    with pytest.raises(ValueError, match="capacity"):
        cache.reserve(20)


@pytest.mark.parametrize("kind", ["hybrid", "full"])
def test_slots_that_take_over_others(kind: str) -> None:
    model = decoder(**KINDS[kind])
    expected, cache = rows(model), cache_of(model)
    model.prefill(IDS[:, :30], LENGTHS, cache, range(4))
    order = torch.tensor([3, 1, 1, 0])
    cache.reorder_cache(order)
    assert cache.lengths == [LENGTHS[b] for b in order]
    places = torch.tensor(LENGTHS)[order]
    for _ in range(9):
        found = model.decode(IDS[order, places], cache, range(4))
        torch.testing.assert_close(found, expected[order, places], atol=1e-10, rtol=0)
        places += 1


def test_forward_makes_a_cache_and_goes_on_behind_it() -> None:
    model = decoder()
    expected = rows(model)
    out = model(IDS[:, :7], use_cache=True)
    parts, cache, place = [out.logits], out.past_key_values, 7
    for number in (1, 1, 5, 1, 12, 1, 9):
        out = model(IDS[:, place : place + number], past_key_values=cache)
        assert out.past_key_values is cache
        parts.append(out.logits)
        place += number
    torch.testing.assert_close(torch.cat(parts, dim=1), expected[:, :place], atol=1e-10, rtol=0)
    assert cache.get_seq_length() == place
    last = model(IDS[:, place : place + 6], past_key_values=cache, logits_to_keep=2).logits
    torch.testing.assert_close(last, expected[:, place + 4 : place + 6], atol=1e-10, rtol=0)
    assert model(IDS).past_key_values is None


def test_what_forward_does_not_take_with_a_cache() -> None:
    model = decoder()
    cache = model(IDS[:, :7], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="neither labels nor documents"):
        model(IDS[:, 7:9], past_key_values=cache, labels=IDS[:, 7:9])
    with pytest.raises(ValueError, match="has 4 slots: expected 8"):
        model(IDS.repeat(2, 1), past_key_values=cache)
    for mask_BT, said in ((torch.ones(4, 1), "2 columns"), (torch.zeros(4, 9), "have no token")):
        with pytest.raises(ValueError, match=said):
            model(IDS[:, 7:9], past_key_values=cache, attention_mask=mask_BT)
    assert cache.lengths == [7] * 4


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, c: m.decode(IDS[:2, 9], c, [1, 1]), "each once"),
        (lambda m, c: m.decode(IDS[:1, 9], c, [4]), "expected 0 .. 3"),
        (lambda m, c: m.decode(IDS[:1, 9], c, [-1]), "expected 0 .. 3"),
        (lambda m, c: m.decode(IDS[:3, 9], c, [0, 1]), "one for each of 2 slots"),
        (lambda m, c: m.decode(IDS[:2, 9], c, [0, 3]), r"slots \[3\] are full: they hold 12 tokens"),
        (lambda m, c: m.prefill(IDS[:1, :5], [5], c, [0]), "hold sequences: reset them"),
        (lambda m, c: m.prefill(IDS[:1, :13], [13], c, [2]), "has 13 tokens"),
        (lambda m, c: m.prefill(IDS[:1, :5], [6], c, [2]), "has 6 tokens"),
        (lambda m, c: m.prefill(IDS[:1, :5], [5], c, [9]), "expected 0 .. 3"),
        (lambda m, c: m.prefill(IDS[:2, :5], [5, 5], c, [2, 2]), "each once"),
        (lambda m, c: m.prefill(IDS[:1, :5], [5, 5], c, [2]), "lengths"),
        (lambda m, c: m.prefill(IDS[:1, :5], [0], c, [2]), "has 0 tokens"),
        (lambda m, c: m.extend(IDS[0, :9], c, 0), "the capacity"),
        (lambda m, c: m.extend(IDS[0, :2], c, 7), "expected 0 .. 3"),
        (lambda m, c: c.crop(1), "cannot be taken back"),
        (lambda m, c: c.batch_repeat_interleave(2), "has 4 slots"),
        (lambda m, c: c.batch_select_indices(torch.tensor([1])), "has 4 slots"),
    ],
)
def test_refused_and_nothing_is_changed(call: Any, said: str) -> None:
    model = decoder()
    cache = cache_of(model, 4, 12)
    model.prefill(IDS[:3, :12], [9, 9, 12], cache, [0, 1, 3])
    with pytest.raises(ValueError, match=said):
        call(model, cache)
    assert cache.lengths == [9, 9, 0, 12]
    assert all(ring.length_N.tolist() == [9, 9, 0, 12] for ring in cache.rings)
    expected = rows(model)
    found = model.decode(IDS[:2, 9], cache, [0, 1])
    torch.testing.assert_close(found, expected[:2, 9], atol=1e-10, rtol=0)


@pytest.mark.parametrize("call", ["decode", "extend", "prefill"])
def test_an_error_within_a_pass_empties_the_slots_that_it_has_torn(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder()
    cache = cache_of(model)
    model.prefill(IDS[:2, :9], [9, 9], cache, [0, 1])
    calls = {
        "decode": lambda: model.decode(IDS[:1, 9], cache, [1]),
        "extend": lambda: model.extend(IDS[0, 9:15], cache, 1),
        "prefill": lambda: model.prefill(IDS[:1, :5], [5], cache, [2]),
    }
    with pytest.raises(IndexError):
        model.decode(torch.tensor([decoders.VOCAB]), cache, [1])  # before any layer: nothing is torn
    assert cache.lengths == [9, 9, 0, 0]

    def broken(*_: Any, **__: Any) -> Tensor:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[2].mlp, "forward", broken)
        with pytest.raises(MemoryError):
            calls[call]()
    assert cache.lengths == ([9, 9, 0, 0] if call == "prefill" else [9, 0, 0, 0])
    assert all(ring.length_N.tolist() == cache.lengths for ring in cache.rings)
    found = model.decode(IDS[:1, 9], cache, [0])
    torch.testing.assert_close(found, rows(model)[:1, 9], atol=1e-10, rtol=0)


def test_a_baseline_with_windows_has_no_cache() -> None:
    with pytest.raises(ConfigError, match="generate with use_cache=False"):
        cache_of(decoder(summaries=0))


def test_places_are_found_once_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four layers have two layouts; all tables go to the device in one copy."""
    model = decoder(windows=[2, 2, 2, None])
    cache = cache_of(model)
    model.prefill(IDS[:, :30], LENGTHS, cache, range(4))
    calls: list[str] = []
    for name in ("host_places", "to_device"):
        whole = getattr(plans, name)
        monkeypatch.setattr(plans, name, lambda *a, n=name, w=whole, **k: calls.append(n) or w(*a, **k))
    model.decode(IDS[:, 30], cache, range(4))
    assert sorted(calls) == ["host_places", "host_places", "to_device"]
