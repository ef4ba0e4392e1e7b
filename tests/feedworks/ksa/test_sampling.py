"""Choice of tokens: against hand-worked distributions, and alone as beside others."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feedworks.ksa.sampling import Chosen, Sampler, Sampling, choose

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
DRAWS = 4000


def one(logit_V: torch.Tensor, sampler: Sampler) -> Chosen:
    (chosen,) = choose(logit_V[None], [sampler])
    assert chosen is not None
    return chosen


def shares(settings: dict[str, Any], logit_V: torch.Tensor = LOGITS) -> list[float]:
    """How often each token is drawn, from one generator and without penalties' memory."""
    sampler = Sampler(Sampling(seed=5, **settings), [])
    counts = Counter(one(logit_V, sampler).token for _ in range(DRAWS))
    return [counts[token] / DRAWS for token in range(len(logit_V))]


def softmax(logits: list[float]) -> list[float]:
    p = np.exp(logits)
    found: list[float] = (p / p.sum()).tolist()
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, softmax([2, 1, 0.5, 0, -1, -3])),
        ({"temperature": 0.5}, softmax([4, 2, 1, 0, -2, -6])),
        ({"top_k": 2}, [*softmax([2, 1]), 0, 0, 0, 0]),
        ({"top_k": 100}, softmax([2, 1, 0.5, 0, -1, -3])),
        ({"top_p": 0.6}, [*softmax([2, 1]), 0, 0, 0, 0]),  # the likeliest alone has 0.56
        ({"top_p": 0.5}, [1, 0, 0, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [*softmax([2, 1]), 0, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.8}, [*softmax([2, 1]), 0, 0, 0, 0]),  # 0.86 of the three, 0.77 of all
        ({"temperature": 0.5, "top_p": 0.8}, [1, 0, 0, 0, 0, 0]),  # 0.83 when it is as cold
        ({"min_p": 0.2}, [*softmax([2, 1, 0.5]), 0, 0, 0]),  # exp(-1.5) is 0.22, exp(-2) is 0.14
        ({"logit_bias": {5: 5.0}}, softmax([2, 1, 0.5, 0, -1, 2])),
        ({"logit_bias": {0: -100.0}, "top_k": 1}, [0, 1, 0, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(settings: dict[str, Any], expected: list[float]) -> None:
    for found, wanted in zip(shares(settings), expected, strict=True):
        assert found == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / DRAWS) + 1e-9)


def test_top_p_that_is_just_reached_takes_no_more() -> None:
    assert shares({"top_p": 0.5}, torch.tensor([0.0, 0.0, -1000.0])) == [1, 0, 0]


def test_temperature_0_takes_the_likeliest() -> None:
    for settings in ({}, {"top_k": 4}, {"top_p": 0.9}, {"logit_bias": {1: 0.5}}):
        assert one(LOGITS, Sampler(Sampling(temperature=0, **settings), [])).token == 0  # type: ignore[arg-type]
    # So small a temperature must not overflow.
    assert one(LOGITS, Sampler(Sampling(temperature=1e-4), [])).token == 0


def test_penalties_by_hand() -> None:
    sampler = Sampler(
        Sampling(presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2.0, seed=0), [4, 0, 4]
    )
    for token in (1, 1, 5):
        sampler.note(token)
    # Tokens 0 and 4 stand in the prompt, 1 twice and 5 once in the answer.
    expected = [2.0 / 2, 1.0 / 2 - 0.5 - 0.5, 0.5, 0.0, -1.0 * 2, -3.0 * 2 - 0.5 - 0.25]
    assert sampler.adjusted(LOGITS).tolist() == pytest.approx(expected)
    assert LOGITS.tolist() == [2.0, 1.0, 0.5, 0.0, -1.0, -3.0]


def test_a_bias_comes_before_the_penalty_of_repetition() -> None:
    sampler = Sampler(Sampling(logit_bias={0: -4.0}, repetition_penalty=2.0), [0])
    assert sampler.adjusted(LOGITS)[0] == (2.0 - 4.0) * 2


def test_a_penalty_moves_a_greedy_answer_on() -> None:
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=0.9), [])
    assert [one(LOGITS, sampler).token for _ in range(4)] == [0, 0, 1, 2]


def test_a_seed_gives_the_same_tokens_beside_any_others() -> None:
    settings = [
        Sampling(seed=1),
        Sampling(seed=1, top_p=0.9),
        Sampling(temperature=0),
        Sampling(seed=3, top_k=3, num_logprobs=2),
        Sampling(seed=4, presence_penalty=1.0, min_p=0.01),
        Sampling(),
    ]
    logit_TBV = torch.randn(30, len(settings), 50, generator=torch.Generator().manual_seed(0))
    together = [Sampler(each, [1, 2]) for each in settings]
    rows = [choose(logit_BV, together) for logit_BV in logit_TBV]
    for b, each in enumerate(settings[:-1]):
        alone = Sampler(each, [1, 2])
        assert [row[b] for row in rows] == [one(logit_BV[b], alone) for logit_BV in logit_TBV]


def test_answers_to_one_request_differ() -> None:
    logit_V = torch.zeros(1000)
    answers = [
        [one(logit_V, sampler).token for _ in range(5)]
        for sampler in (Sampler(Sampling(seed=7), [], number) for number in (0, 1, 0))
    ]
    assert answers[0] == answers[2] != answers[1]


def test_log_probabilities_are_the_model_s_own() -> None:
    sampling = Sampling(temperature=0, logit_bias={2: 50.0}, num_logprobs=2)
    found = one(LOGITS, Sampler(sampling, []))
    expected = LOGITS.log_softmax(0).tolist()
    assert found.token == 2
    assert found.logprob == pytest.approx(expected[2])
    assert [token for token, _ in found.top] == [0, 1]
    assert [logprob for _, logprob in found.top] == pytest.approx(expected[:2])
    assert one(LOGITS, Sampler(Sampling(num_logprobs=0), [])).top == ()
    assert one(LOGITS, Sampler(Sampling(), [])).logprob is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_spoil_no_neighbour(bad: float) -> None:
    logit_BV = torch.stack([LOGITS, LOGITS, LOGITS])
    logit_BV[1, 3] = bad
    found = choose(logit_BV, [Sampler(Sampling(temperature=0), []) for _ in range(3)])
    assert [None if each is None else each.token for each in found] == [0, None, 0]


@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12),
    temperature=st.floats(1e-4, 2),
    top_p=st.floats(1e-6, 1),
    top_k=st.integers(0, 15),
    min_p=st.floats(0, 1),
)
def test_something_is_always_chosen(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=0)
    logit_V = torch.tensor(logits)
    token = one(logit_V, Sampler(sampling, [])).token
    better = int((logit_V > logit_V[token]).sum())
    assert not top_k or better < top_k
    assert math.exp(float(logit_V[token] - logit_V.max()) / temperature) >= min_p * (1 - 1e-6) or not better
