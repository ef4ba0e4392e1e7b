"""KSA (arXiv 2604.24432): what a model does, in numbers: losses, answers, decoded logits, bytes of its cache.

Shape letters: B rows of a batch, R rows of a split, T tokens of a row, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feedworks.errors import ModelError
from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.cache import KsaCache, formula_bytes
from feedworks.ksa.losses import next_token_losses
from feedworks.ksa.model import Qwen3KsaForCausalLM

MOST_BYTES = 1 << 30  # of a cache that is allocated only to be measured


class CacheSize(NamedTuple):
    """The cache of one sequence: bytes allocated, held when it is full, and by the paper's formula."""

    num_bytes: int
    held_bytes: int
    formula_bytes: int


def row_losses(model: Qwen3KsaForCausalLM, ids_RT: Tensor, batch_size: int) -> npt.NDArray[np.float64]:
    """Return the cross-entropy (R, T - 1), in nats, of each next token in its row.

    Args:
        model: in evaluation mode.
        ids_RT: token ids.
        batch_size: rows computed at once.
    """
    found = []
    for ids_BT in torch.split(ids_RT, batch_size):
        ids_BT = ids_BT.to(model.device)
        with torch.no_grad():
            states_BTD = model.model.text_states(ids_BT)
        loss_BT = next_token_losses(states_BTD, model.lm_head.weight, ids_BT)
        found.append(loss_BT.double().cpu().numpy())
    return np.concatenate(found)


@torch.no_grad()
def greedy(
    model: Qwen3KsaForCausalLM, prompts: Sequence[Sequence[int]], max_new_tokens: int, end_id: int
) -> list[list[int]]:
    """Return the most probable continuations, without the end of text, all prompts at once.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one each.
        max_new_tokens: longest answer.
        end_id: ends an answer.

    Raises:
        ConfigError: the model has windows and no summaries, and with that no cache.
    """
    capacity = max(map(len, prompts)) + max_new_tokens
    cache = KsaCache(model.config, len(prompts), capacity, dtype=model.dtype, device=model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    logits_BV = model.prefill(_padded(prompts).to(model.device), list(map(len, prompts)), cache, going)
    while True:
        for row, token in zip(going, logits_BV.argmax(-1).tolist(), strict=True):
            answers[row].append(token)
        going = [row for row in going if answers[row][-1] != end_id and len(answers[row]) < max_new_tokens]
        if not going:
            return [answer[:-1] if answer[-1] == end_id else answer for answer in answers]
        token_B = torch.tensor([answers[row][-1] for row in going], device=model.device)
        logits_BV = model.decode(token_B, cache, going)


@torch.no_grad()
def continues(
    model: Qwen3KsaForCausalLM, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[bool]:
    """Say of each prompt whether the most probable continuation begins with the target; one pass tells.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one each.
        targets: token ids, at least one each.
    """
    rows = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
    states_BTD = model.model.text_states(_padded(rows).to(model.device))
    found = []
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        logits_AV = model.lm_head(states_BTD[row, len(prompt) - 1 : len(prompt) + len(target) - 1])
        found.append(logits_AV.argmax(-1).tolist() == list(target))
    return found


@torch.no_grad()
def decode_error(model: Qwen3KsaForCausalLM, ids_BT: Tensor, starts: Sequence[int]) -> float:
    """Return the largest difference of a decoded logit from the one that one pass over the text gives.

    Args:
        model: in evaluation mode, with a cache.
        ids_BT: texts.
        starts: tokens of each text that are prefilled; the others are decoded one by one, all texts in the
            same steps.

    Raises:
        ModelError: a logit is not finite.
    """
    ids_BT = ids_BT.to(model.device)
    num_rows, num_tokens = ids_BT.shape
    states_BTD = model.model.text_states(ids_BT)
    cache = KsaCache(model.config, num_rows, num_tokens, dtype=model.dtype, device=model.device)
    prompts_BT = ids_BT[:, : max(starts)]
    rows, at = list(range(num_rows)), list(starts)
    found_BV = model.prefill(prompts_BT, at, cache, rows)
    worst = 0.0
    while rows:
        expected_BV = model.lm_head(states_BTD[rows, [at[row] - 1 for row in rows]])
        error = float((found_BV - expected_BV).abs().max())
        if not math.isfinite(error):
            raise ModelError("the model gives logits that are not finite; train it again with a lower lr")
        worst = max(worst, error)
        rows = [row for row in rows if at[row] < num_tokens]
        if rows:
            found_BV = model.decode(ids_BT[rows, [at[row] for row in rows]], cache, rows)
            at = [length + (row in rows) for row, length in enumerate(at)]
    return worst


def cache_size(config: Qwen3KsaConfig, length: int, dtype: torch.dtype) -> CacheSize:
    """Measure the cache of one sequence of just `length` tokens; large ones get no memory behind them."""
    needed = formula_bytes(config, length, dtype.itemsize)
    device = "meta" if needed > MOST_BYTES else "cpu"
    cache = KsaCache(config, 1, length, dtype=dtype, device=device)
    return CacheSize(cache.num_bytes, cache.used_bytes([length]), needed)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
