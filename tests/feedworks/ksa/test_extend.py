"""A sequence that comes in parts is the sequence that came at once."""

from __future__ import annotations

import pytest
import torch

from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.cache import KsaCache
from feedworks.ksa.model import Qwen3KsaForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
HYBRID = {"chunk": 4, "windows": [2, 0, 3, None]}


def tiny(**settings):
    torch.manual_seed(0)
    return Qwen3KsaForCausalLM(Qwen3KsaConfig(**SIZES, **settings)).eval()


@pytest.mark.parametrize(
    "settings",
    [
        HYBRID,
        {**HYBRID, "summaries": 2},
        {**HYBRID, "summary_bypass": True},
        {"chunk": 4, "windows": [None] * 4},
        {"summaries": 0, "windows": [None] * 4},
    ],
    ids=["hybrid", "two summaries", "bypass", "all raw", "no summaries"],
)
def test_parts_of_any_length_are_the_whole(settings):
    model = tiny(**settings)
    ids_T = torch.randint(0, 97, (61,))
    with torch.no_grad():
        expected_TV = model(ids_T[None]).logits[0]
    cache = KsaCache(model.config, 3, 61)
    model.prefill(ids_T[None, :30].flip(1), [30], cache, [2])  # a neighbour that is to stay as it is
    before = cache.rings[0].key_NGLD[2].clone()
    done = 0
    for number in (7, 1, 16, 3, 1, 20, 1, 4, 8):
        part_T = ids_T[done : done + number]
        done += number
        logits_V = model.decode(part_T, cache, [1])[0] if number == 1 else model.extend(part_T, cache, slot=1)
        torch.testing.assert_close(logits_V, expected_TV[done - 1], atol=1e-5, rtol=0)
    assert cache.lengths == [0, 61, 30]
    assert torch.equal(cache.rings[0].key_NGLD[2].nan_to_num(), before.nan_to_num())


def test_what_does_not_fit_changes_nothing():
    model = tiny(**HYBRID)
    cache = KsaCache(model.config, 2, 16)
    first = model.extend(torch.arange(10), cache, slot=0)
    for slot, number, message in ((0, 7, "7 tokens behind 10"), (2, 1, "slot 2"), (0, 0, "0 tokens")):
        with pytest.raises(ValueError, match=message):
            model.extend(torch.arange(number), cache, slot=slot)
    assert cache.lengths == [10, 0]
    again = model.extend(torch.arange(10), cache, slot=1)
    torch.testing.assert_close(first, again)


def test_a_failure_in_the_middle_leaves_an_empty_slot():
    model = tiny(**HYBRID)
    cache = KsaCache(model.config, 1, 16)
    model.extend(torch.arange(5), cache, slot=0)
    handle = model.model.layers[2].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        model.extend(torch.arange(5), cache, slot=0)
    handle.remove()
    assert cache.lengths == [0]
    assert cache.used_bytes() == 0
    assert cache.rings[0].length_N.tolist() == [0]
