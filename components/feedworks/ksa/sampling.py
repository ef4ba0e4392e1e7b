"""KSA (arXiv 2604.24432): the next token of each of several sequences, every one by its own settings.

Order of what is done to logits: bias, repetition penalty, presence and frequency penalties, temperature,
top k, top p among those, min p. Log-probabilities are those of the model itself, before any of it. A
sequence draws from a generator of its own, so that its tokens do not depend on its neighbours.

Shape letters: B sequences, V vocabulary, K candidates, R rows of a group.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

# Below it the second best token has no chance that a 64-bit number could tell from 0.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose tokens. Ranges are checked where requests come in, see `feedworks.ksa.protocol`.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: the fewest likeliest tokens that together have this probability; 1 is all.
        top_k: the likeliest tokens, 0 is all.
        min_p: tokens with this share of the likeliest one's probability.
        seed: of the draws; None draws differently each time.
        repetition_penalty: divides positive logits of tokens in prompt and answer, multiplies negative ones
            (arXiv 1909.05858).
        presence_penalty: subtracted from logits of tokens in the answer.
        frequency_penalty: the same for each time that a token is in the answer.
        logit_bias: added to logits, by token.
        num_logprobs: likeliest tokens to report with log-probabilities; None reports nothing, 0 the chosen
            token alone.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    num_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def changes_logits(self) -> bool:
        """Whether a bias or a penalty is to be applied."""
        penalties = (self.repetition_penalty - 1, self.presence_penalty, self.frequency_penalty)
        return bool(self.logit_bias) or any(penalties)

    @property
    def narrows(self) -> bool:
        """Whether some tokens are left out."""
        return bool(self.top_k) or self.top_p < 1 or self.min_p > 0


class Chosen(NamedTuple):
    """A token, its log-probability and the likeliest tokens with theirs, where those were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """What the choice of one sequence's tokens depends on beside its logits.

    Args:
        sampling: settings.
        prompt: tokens.
        number: of the sequence among several with the same settings: they differ in their draws.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], number: int = 0) -> None:
        self.sampling = sampling
        self._prompt = prompt
        self._prompt_ids: Tensor | None = None
        self._counts: Counter[int] = Counter()
        seed = None if sampling.seed is None else f"{sampling.seed}/{number}"
        self._random = random.Random(seed)

    def note(self, token: int) -> None:
        """Count a token of the answer."""
        self._counts[token] += 1

    def draw(self) -> float:
        """Return the next number of this sequence, in [0, 1)."""
        return self._random.random()

    def adjusted(self, logit_V: Tensor) -> Tensor:
        """Return logits on the CPU with bias and penalties applied."""
        logit_V = logit_V.clone()
        sampling = self.sampling
        if sampling.logit_bias:
            place = torch.tensor(list(sampling.logit_bias), dtype=torch.int64)
            logit_V[place] += torch.tensor(list(sampling.logit_bias.values()), dtype=logit_V.dtype)
        answer = torch.tensor(list(self._counts), dtype=torch.int64)
        if sampling.repetition_penalty != 1:
            if self._prompt_ids is None:  # for a long prompt, many times, this takes a second
                self._prompt_ids = torch.tensor(sorted(set(self._prompt)), dtype=torch.int64)
            seen = torch.unique(torch.cat([self._prompt_ids, answer]))
            seen_logit = logit_V[seen]
            factor = sampling.repetition_penalty
            logit_V[seen] = torch.where(seen_logit > 0, seen_logit / factor, seen_logit * factor)
        if sampling.presence_penalty or sampling.frequency_penalty:
            count = torch.tensor(list(self._counts.values()), dtype=logit_V.dtype)
            logit_V[answer] -= sampling.presence_penalty + sampling.frequency_penalty * count
        return logit_V


def choose(logit_BV: Tensor, samplers: Sequence[Sampler]) -> list[Chosen | None]:
    """Choose the next token of each sequence; None where the logits are not finite.

    Args:
        logit_BV: of the model, on any device.
        samplers: one per row; `note` is called for the chosen tokens.
    """
    largest_B, likeliest_B = logit_BV.max(dim=1)  # NaN is the largest of its row
    tokens: list[int | None] = [
        token if finite else None
        for token, finite in zip(likeliest_B.tolist(), largest_B.isfinite().tolist(), strict=True)
    ]
    good = [b for b, token in enumerate(tokens) if token is not None]
    plain = [b for b in good if not samplers[b].sampling.changes_logits]
    drawn = [b for b in plain if not (samplers[b].sampling.greedy or samplers[b].sampling.narrows)]
    for b, token in zip(drawn, _draw_rows(logit_BV, [(b, samplers[b]) for b in drawn]), strict=True):
        tokens[b] = token
    for b in good:
        sampling = samplers[b].sampling
        if sampling.changes_logits or (sampling.narrows and not sampling.greedy):
            tokens[b] = _choose_one(logit_BV[b].float().cpu(), samplers[b])
    chosen = [
        None if token is None else _report(logit_BV[b], samplers[b].sampling, token)
        for b, token in enumerate(tokens)
    ]
    for each, sampler in zip(chosen, samplers, strict=True):
        if each is not None:
            sampler.note(each.token)
    return chosen


def _draw_rows(logit_BV: Tensor, rows: Sequence[tuple[int, Sampler]]) -> list[int]:
    """Draw from whole rows, all at once."""
    if not rows:
        return []
    logit_RV = logit_BV[[b for b, _ in rows]].double()
    temperature_R = logit_RV.new_tensor([sampler.sampling.temperature for _, sampler in rows])
    p_RV = ((logit_RV - logit_RV.amax(dim=1, keepdim=True)) / temperature_R[:, None]).softmax(dim=1)
    u_R = p_RV.new_tensor([sampler.draw() for _, sampler in rows])
    return _places(p_RV, u_R)


def _choose_one(logit_V: Tensor, sampler: Sampler) -> int:
    sampling = sampler.sampling
    logit_V = sampler.adjusted(logit_V)
    if sampling.greedy:
        return int(logit_V.argmax())
    logit_K, token_K = logit_V, None
    if sampling.top_k:
        logit_K, token_K = logit_V.topk(min(sampling.top_k, len(logit_V)))
    elif sampling.top_p < 1:
        logit_K, token_K = logit_V.sort(descending=True, stable=True)
    logit_K = logit_K.double()
    p_K = ((logit_K - logit_K.max()) / sampling.temperature).softmax(dim=0)
    if sampling.top_p < 1:  # what reaches p is still in
        p_K = p_K * (p_K.cumsum(dim=0) - p_K < sampling.top_p)
    p_K = p_K * (p_K >= sampling.min_p * p_K.max())
    (place,) = _places(p_K[None], p_K.new_tensor([sampler.draw()]))
    return place if token_K is None else int(token_K[place])


def _places(p_RK: Tensor, u_R: Tensor) -> list[int]:
    """Find where the running sum of each row passes its share u of the row's sum."""
    sum_RK = p_RK.cumsum(dim=1)
    at_R1 = torch.searchsorted(sum_RK, u_R[:, None] * sum_RK[:, -1:], right=True)
    at_R1 = at_R1.clamp(max=p_RK.shape[1] - 1)
    # Rounding may lead to the end of the row, where nothing may be left to choose.
    found_R1 = torch.where(p_RK.gather(1, at_R1) > 0, at_R1, p_RK.argmax(dim=1, keepdim=True))
    places: list[int] = found_R1[:, 0].tolist()
    return places


def _report(logit_V: Tensor, sampling: Sampling, token: int) -> Chosen:
    if sampling.num_logprobs is None:
        return Chosen(token)
    logp_V = logit_V.float().log_softmax(dim=0)
    value_K, token_K = logp_V.topk(min(sampling.num_logprobs, len(logp_V)))
    top = tuple(zip(token_K.tolist(), value_K.tolist(), strict=True))
    return Chosen(token, float(logp_V[token]), top)
