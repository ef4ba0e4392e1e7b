"""transformers' generate: each row of a batch is what it is alone, whatever stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, Qwen3ForCausalLM
from transformers.generation.streamers import BaseStreamer

from feedworks.errors import ConfigError
from feedworks.ksa.cache import KsaCache
from feedworks.ksa.checkpoint import as_qwen3
from feedworks.ksa.model import Qwen3KsaForCausalLM

from . import decoders, served

NEW = 30  # more than two rounds of the ring of layer 0: (2 + 1) chunks of 4
LENGTHS = (3, 11, 19, 8)
SETTINGS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "two summaries": {"summaries": 2},
    "bypass": {"summary_bypass": True},
    "full": {"summaries": 0, "windows": [None] * 4},
    "annealing": {"summary_weight": 0.5},
}
BASELINES: dict[str, dict[str, Any]] = {
    "chunks": {"summaries": 0},
    "tokens": {"summaries": 0, "raw_window": "token"},
}


def decoder(**settings: Any) -> Qwen3KsaForCausalLM:
    """In fp64, so that the same text by another way has the same best token."""
    model = decoders.decoder(**settings).double()
    model.generation_config.update(pad_token_id=decoders.PAD, do_sample=False, max_new_tokens=NEW)
    return model


def padded(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    """Return prompts with padding on their left, and the mask."""
    longest = max(lengths)
    ids_BT, mask_BT = decoders.tokens(len(lengths), longest), torch.ones(len(lengths), longest).long()
    for b, length in enumerate(lengths):
        ids_BT[b, : longest - length], mask_BT[b, : longest - length] = decoders.PAD, 0
    return ids_BT, mask_BT


def slowly(model: Any, prompt_T: Tensor, num_new: int) -> Tensor:
    """Extend one prompt by the best tokens, with nothing kept from one to the next."""
    for _ in range(num_new):
        with torch.no_grad():
            best = model(prompt_T[None]).logits[0, -1].argmax()
        prompt_T = torch.cat((prompt_T, best[None]))
    return prompt_T


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_of_a_batch_are_what_they_are_alone(name: str) -> None:
    model = decoder(**SETTINGS[name])
    ids_BT, mask_BT = padded()
    found_BT = model.generate(ids_BT, attention_mask=mask_BT)
    assert found_BT.shape == (4, 19 + NEW)
    assert torch.equal(found_BT, model.generate(ids_BT, attention_mask=mask_BT, use_cache=False))
    for b, length in enumerate(LENGTHS):
        expected_T = slowly(model, ids_BT[b, 19 - length :], NEW)
        assert torch.equal(found_BT[b, 19 - length :], expected_T)
        alone_BT = model.generate(ids_BT[b : b + 1, 19 - length :])
        assert torch.equal(alone_BT[0], expected_T)
    assert len(set(found_BT[0].tolist())) > 5  # not the same token again and again


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_generate_without_a_cache(name: str) -> None:
    model = decoder(**BASELINES[name])
    ids_BT, mask_BT = padded((9, 6))
    found_BT = model.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=15)
    for b, length in enumerate((9, 6)):
        assert torch.equal(found_BT[b, 9 - length :], slowly(model, ids_BT[b, 9 - length :], 15))
    with pytest.raises(ConfigError, match="use_cache=False"):
        model(ids_BT, use_cache=True)


def test_without_windows_and_summaries_it_is_transformers_qwen3() -> None:
    model = decoder(summaries=0, windows=[None] * 4)
    plain = as_qwen3(model)
    ids_BT, mask_BT = padded()
    torch.manual_seed(5)
    found_BT = model.generate(ids_BT, attention_mask=mask_BT, do_sample=True, temperature=0.8, top_p=0.9)
    torch.manual_seed(5)
    expected_BT = plain.generate(
        ids_BT,
        attention_mask=mask_BT,
        do_sample=True,
        temperature=0.8,
        top_p=0.9,
        max_new_tokens=NEW,
        pad_token_id=decoders.PAD,
    )
    assert isinstance(plain, Qwen3ForCausalLM)
    assert torch.equal(found_BT, expected_BT)


def test_sampling_with_and_without_a_cache_draws_the_same() -> None:
    model = decoder()
    ids_BT, mask_BT = padded()
    draws = []
    for use_cache in (True, False, True):
        torch.manual_seed(3 if len(draws) < 2 else 4)
        draws.append(model.generate(ids_BT, attention_mask=mask_BT, do_sample=True, use_cache=use_cache))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_several_answers_to_a_prompt() -> None:
    model = decoder()
    ids_BT, mask_BT = padded((5, 9))
    torch.manual_seed(0)
    found_BT = model.generate(ids_BT, attention_mask=mask_BT, do_sample=True, num_return_sequences=3)
    assert found_BT.shape == (6, 9 + NEW)
    assert torch.equal(found_BT[:, :9], ids_BT.repeat_interleave(3, dim=0))
    assert len({tuple(row) for row in found_BT.tolist()}) == 6


def test_a_row_that_ends_is_padded_while_others_go_on() -> None:
    model = decoder()
    ids_BT, mask_BT = padded()
    free_BT = model.generate(ids_BT, attention_mask=mask_BT)[:, 19:]
    ends = int(free_BT[1, 4])  # what row 1 says fifth ends a text from now on
    found_BT = model.generate(ids_BT, attention_mask=mask_BT, eos_token_id=ends)[:, 19:]
    stops = []
    for b, free_T in enumerate(free_BT.tolist()):
        stop = free_T.index(ends) + 1 if ends in free_T else NEW
        stops.append(stop)
        assert found_BT[b, :stop].tolist() == free_T[:stop]
        assert set(found_BT[b, stop:].tolist()) <= {decoders.PAD}
    assert stops[1] <= 5 < max(stops)


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.parts.append(value)

    def end(self) -> None:
        self.ended = True


def test_a_streamer_hears_each_token() -> None:
    model, streamer = decoder(), Heard()
    found_BT = model.generate(decoders.tokens(1, 7), streamer=streamer)
    assert streamer.ended
    assert len(streamer.parts) == 1 + NEW
    assert torch.equal(torch.cat([part.flatten() for part in streamer.parts]), found_BT[0])


@pytest.mark.parametrize("name", ["hybrid", "two summaries", "full"])
def test_beams_with_a_cache_are_beams_without(name: str) -> None:
    model = decoder(**SETTINGS[name])
    ids_BT, mask_BT = padded((5, 9, 2))
    given = {"attention_mask": mask_BT, "num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 22}
    found_BT = model.generate(ids_BT, **given)
    assert torch.equal(found_BT, model.generate(ids_BT, use_cache=False, **given))
    assert not torch.equal(found_BT[::2], model.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=22))


@pytest.mark.parametrize("cached", [True, False], ids=["the cache goes on", "an empty one"])
def test_a_conversation_goes_on(cached: bool) -> None:
    """The second turn finds the first one in the cache, which grows; rows are unequally long."""
    model = decoder(summaries=2)
    ids_BT, mask_BT = padded()
    first = model.generate(
        ids_BT, attention_mask=mask_BT, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    assert len(first.scores) == len(first.logits) == NEW
    cache = first.past_key_values
    assert isinstance(cache, KsaCache)
    assert cache.lengths == [length + NEW - 1 for length in LENGTHS]  # the last token has not been read
    assert cache.get_seq_length() == 19 + NEW - 1
    turn_BT = torch.cat((first.sequences, decoders.tokens(4, 6, seed=1)), dim=1)
    mask_BT = torch.cat((mask_BT, mask_BT.new_ones(4, NEW + 6)), dim=1)
    mask_BT[2, 19 + NEW : 19 + NEW + 4] = 0  # a shorter second turn
    room = cache if cached else KsaCache(model.config, 5, 1, dtype=torch.float64)
    if not cached:
        mask_BT[2, 19 + NEW :] = 1
    second_BT = model.generate(turn_BT, attention_mask=mask_BT, past_key_values=room)
    for b, taken_T in enumerate(mask_BT.bool()):
        expected_T = slowly(model, turn_BT[b][taken_T], NEW)
        assert torch.equal(second_BT[b, -NEW:], expected_T[-NEW:])


@pytest.mark.parametrize("name", ["hybrid", "two summaries", "full"])
@pytest.mark.parametrize("lengths", [LENGTHS, (5, 3)], ids=["one row fills the first part", "none has it"])
@pytest.mark.parametrize("part", [1, 4, 17])
def test_a_prompt_in_parts(name: str, lengths: tuple[int, ...], part: int) -> None:
    """Rows that are padding in a whole part begin later."""
    model = decoder(**SETTINGS[name])
    ids_BT, mask_BT = padded(lengths)
    found_BT = model.generate(ids_BT, attention_mask=mask_BT, prefill_chunk_size=part)
    assert torch.equal(found_BT, model.generate(ids_BT, attention_mask=mask_BT))


def test_a_prompt_in_parts_of_padding_alone() -> None:
    model = decoder()
    ids_BT, mask_BT = padded((5, 3))
    wide_BT = torch.cat((torch.full((2, 6), decoders.PAD), ids_BT), dim=1)
    wide_mask_BT = torch.cat((torch.zeros(2, 6).long(), mask_BT), dim=1)
    found_BT = model.generate(wide_BT, attention_mask=wide_mask_BT, prefill_chunk_size=4)
    assert torch.equal(found_BT[:, 6:], model.generate(ids_BT, attention_mask=mask_BT))


def test_a_text_that_stops_an_answer(tmp_path: Path) -> None:
    """As in transformers' own model, which says the same."""
    model = decoder(vocab_size=served.VOCAB, summaries=0, windows=[None] * 4)
    tokenizer = AutoTokenizer.from_pretrained(served.write_tokenizer(tmp_path))
    plain = as_qwen3(model)
    plain.generation_config.update(pad_token_id=decoders.PAD, do_sample=False, max_new_tokens=NEW)
    prompt_BT = tokenizer("the old sea", return_tensors="pt").input_ids
    start = prompt_BT.shape[1]
    said = [tokenizer.decode([token]) for token in model.generate(prompt_BT)[0, start:].tolist()]
    at = next(
        place for place in range(3, NEW) if said[place].isalpha() and said[place] not in "".join(said[:place])
    )
    found_BT = model.generate(prompt_BT, stop_strings=[said[at]], tokenizer=tokenizer)
    assert found_BT.shape[1] == start + at + 1
    assert torch.equal(found_BT, plain.generate(prompt_BT, stop_strings=[said[at]], tokenizer=tokenizer))


def test_from_a_folder_by_its_own_settings(tmp_path: Any) -> None:
    model = decoder()
    model.save_pretrained(tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids_BT, mask_BT = padded()
    assert found.generation_config.max_new_tokens == NEW
    expected_BT = model.generate(ids_BT, attention_mask=mask_BT)
    assert torch.equal(found.generate(ids_BT, attention_mask=mask_BT), expected_BT)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt_lookup_num_tokens": 3}, "assisted_generation: expected one of greedy_search"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive_search: expected one of"),
        ({"dola_layers": "low"}, "dola_generation: expected one of"),
        ({"cache_implementation": "static"}, "cache_implementation='static': leave it out"),
        ({"past_key_values": DynamicCache()}, "expected a KsaCache, got a DynamicCache"),
        (
            {"output_hidden_states": True, "return_dict_in_generate": True},
            "output_hidden_states is not taken",
        ),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions is not taken"),
        ({"inputs_embeds": torch.zeros(2, 3, 32)}, "inputs_embeds"),
        ({"position_ids": torch.zeros(2, 5).long()}, "position_ids"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])}, "padding on the left"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]])}, "one run of ones"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])}, "padding on the left"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    model = decoder()
    with pytest.raises(ValueError, match=said):
        model.generate(decoders.tokens(2, 5), **given)


def test_a_cache_with_too_few_slots() -> None:
    model = decoder()
    cache = KsaCache(model.config, 3, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match="has 3 slots: expected 4"):
        model.generate(decoders.tokens(2, 5), past_key_values=cache, do_sample=True, num_return_sequences=2)


def test_the_cache_of_generate_is_as_large_as_it_has_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """max_new_tokens tokens behind the longest prompt, the last of which is never read."""
    made = []
    whole = KsaCache.__init__

    def counted(self: KsaCache, config: Any, num_slots: int, capacity: int, **kind: Any) -> None:
        made.append((num_slots, capacity))
        whole(self, config, num_slots, capacity, **kind)

    monkeypatch.setattr(KsaCache, "__init__", counted)
    model = decoder()
    model.generate(decoders.tokens(2, 5), max_new_tokens=7)
    model.generate(decoders.tokens(2, 5), max_new_tokens=4, num_return_sequences=2, do_sample=True)
    model.generate(decoders.tokens(1, 1), max_new_tokens=1)
    assert made == [(2, 11), (4, 8), (1, 1)]
