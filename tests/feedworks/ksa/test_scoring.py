"""What the evaluation measures, against models of which the answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from feedworks.errors import ConfigError
from feedworks.ksa import scoring
from feedworks.ksa.arms import ARMS, architecture, arm_of
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.settings import ModelConfig

MODEL = ModelConfig(
    width=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    hidden=48,
    chunk=4,
    window=2,
    max_length=256,
    tie=False,
)
VOCABULARY = 40


def made(arm: str) -> Qwen3KsaForCausalLM:
    torch.manual_seed(0)
    return Qwen3KsaForCausalLM(architecture(arm, MODEL, vocab_size=VOCABULARY, eos_token_id=0)).eval()


def texts(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_known_by_its_configuration(arm: str) -> None:
    config = architecture(arm, MODEL, vocab_size=VOCABULARY)
    assert arm_of(config) == arm
    assert config.layer_windows == ([None] * 4 if arm == "full" else [2, 2, 2, None])


@pytest.mark.parametrize("arm", ARMS)
def test_losses_are_those_of_the_model_whatever_the_batches(arm: str) -> None:
    model, ids_RT = made(arm), texts(5, 33)
    found_RT = scoring.row_losses(model, ids_RT, batch_size=2)
    assert found_RT.shape == (5, 32)
    expected = model(ids_RT, labels=ids_RT).loss.item()
    assert found_RT.mean() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("arm", ["ksa", "full"])
def test_greedy_answers_are_those_of_one_prompt_at_a_time(arm: str) -> None:
    model = made(arm)
    prompts = [texts(1, length)[0].tolist() for length in (3, 17, 26, 9)]
    for prompt, answer in zip(prompts, scoring.greedy(model, prompts, 12, end_id=0), strict=True):
        text = list(prompt)
        for token in answer:
            assert model(torch.tensor([text])).logits[0, -1].argmax() == token
            text.append(token)
        ended = model(torch.tensor([text])).logits[0, -1].argmax() == 0
        assert len(answer) == 12 or ended


def test_an_answer_ends_before_the_end_of_text() -> None:
    model, prompts = made("ksa"), [[5, 6, 7], [8, 9]]
    first, second = scoring.greedy(model, prompts, 8, end_id=-1)
    cut = next(place for place, token in enumerate(first) if token not in first[:place] and place)
    again = scoring.greedy(model, prompts, 8, end_id=first[cut])
    assert again[0] == first[:cut]
    assert again[1] == second[: second.index(first[cut]) if first[cut] in second else None]


@pytest.mark.parametrize("arm", ["ksa", "full"])
def test_a_target_is_found_where_greedy_answers_give_it(arm: str) -> None:
    model, prompts = made(arm), [[5, 6, 7, 8, 9, 4], [8, 9], [3, 2, 1]]
    answers = scoring.greedy(model, prompts, 6, end_id=-1)
    wrong = [*answers[1][:-1], (answers[1][-1] + 1) % VOCABULARY]
    assert scoring.continues(model, prompts, [answers[0], wrong, answers[2][:3]]) == [True, False, True]


def test_without_a_cache_there_are_no_greedy_answers() -> None:
    with pytest.raises(ConfigError, match="no cache"):
        scoring.greedy(made("chunk"), [[1, 2]], 4, end_id=0)


@pytest.mark.parametrize("arm", ["ksa", "full"])
def test_decoding_is_reading(arm: str) -> None:
    assert scoring.decode_error(made(arm), texts(4, 50), [1, 4, 13, 50]) < 1e-4


def test_a_wrong_cache_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("ksa")
    step = scoring.KsaCache.step
    monkeypatch.setattr(scoring.KsaCache, "step", lambda self, *a: step(self, *a[:3], 2 * a[3]))
    assert scoring.decode_error(model, texts(2, 30), [5, 9]) > 1e-3


def test_one_wrong_step_is_seen_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, num_steps = made("ksa"), 0
    decode = model.decode

    def wrong_once(*given: Any) -> torch.Tensor:
        nonlocal num_steps
        num_steps += 1
        return decode(*given) + (num_steps == 3)

    monkeypatch.setattr(model, "decode", wrong_once)
    assert scoring.decode_error(model, texts(2, 30), [5, 9]) == pytest.approx(1, abs=1e-3)
    assert num_steps == 25


def test_a_cache_has_the_bytes_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    config = architecture("ksa", MODEL, vocab_size=VOCABULARY)
    sizes = [scoring.cache_size(config, 4096, torch.float32)]
    monkeypatch.setattr(scoring, "MOST_BYTES", 0)
    sizes.append(scoring.cache_size(config, 4096, torch.float32))
    by_hand = 2 * 2 * 8 * 4 * (3 * (4 * 2 + 1024) + 4096)
    assert sizes[0] == sizes[1]
    assert sizes[0].formula_bytes == sizes[0].held_bytes == by_hand
    assert by_hand <= sizes[0].num_bytes <= 1.05 * by_hand
