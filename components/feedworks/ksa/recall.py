"""Associative recall: the smallest task that a model can only solve by what it read far away.

A row is slots of two tokens. Early ones hold pairs of a key and a value among slots of noise; then come at
least `gap` tokens of noise, then some of the keys again, each followed by its value. Every row draws its
pairs anew, so nothing else tells a value: who does not see the pairs is right `1 / num_values` of the time.
(The dossier's property 12; the task is that of Arora et al., Zoology, arXiv 2312.04927, with the pairs kept
away from the questions.)

Ids: keys from 0, then values, then noise. Shapes: B rows, T tokens, S slots, P pairs, Q questions,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feedworks.errors import ConfigError
from feedworks.ksa.losses import IGNORED
from feedworks.training.seed import numpy_generator

_NOISE = -1  # instead of a pair


class RecallBatch(NamedTuple):
    """Rows of the task.

    Attributes:
        input_ids_BT: int64 ids; a question's value stands in it, too.
        label_BT: the ids of the values whose pair was seen before, in their own places, and where asked for
            the keys of values one place after them; -100 elsewhere. A model predicts the label at `t` from
            the tokens before `t`, as in transformers.
    """

    input_ids_BT: Tensor
    label_BT: Tensor


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """How rows are made.

    Attributes:
        length: T, tokens of a row, even.
        gap: tokens of noise between the last slot that may hold a pair and the first question, even.
        num_pairs: P, pairs of a row, each with a key of its own; each stands in the row once at least.
        num_queries: Q, questions at the end; a key is asked for again when all others were as often.
        repeats: share of the other early slots that hold one of the pairs once more. All but the first of a
            pair can be told by looking back, so they are labels, too: a row teaches more, and nearer.
        name_keys: after every value the model is to name the key before it, too. A look-up takes two steps,
            a head that tells each value its key and one that finds the key; each is of no use without the
            other, so a model stands still for long. With the first as a task of its own it does not.
        num_keys: different keys.
        num_values: different values.
        num_noise: different tokens of noise.

    Raises:
        ConfigError: The pairs do not fit before the gap, or a number is out of its range.
    """

    length: int
    gap: int
    num_pairs: int = 8
    num_queries: int = 4
    repeats: float = 0.0
    name_keys: bool = False
    num_keys: int = 64
    num_values: int = 64
    num_noise: int = 64

    def __post_init__(self) -> None:
        counts = (self.num_pairs, self.num_queries, self.num_values - 1, self.num_noise, self.gap + 1)
        if min(counts) < 1 or not self.num_pairs <= self.num_keys:
            raise ConfigError(
                "recall: expected a pair, a question, two values, some noise, num_pairs <= num_keys and no "
                f"gap below 0, not {self}"
            )
        if self.length % 2 or self.gap % 2 or not 0 <= self.repeats <= 1:
            raise ConfigError(f"recall: expected an even length and gap, repeats from 0 to 1, not {self}")
        least = 2 * (self.num_pairs + self.num_queries) + self.gap
        if self.length < least:
            raise ConfigError(
                f"recall: {self.num_pairs} pairs, a gap of {self.gap} and {self.num_queries} questions need "
                f"length={least} at least, not {self.length}"
            )

    @property
    def vocab_size(self) -> int:
        """V, of all ids."""
        return self.num_keys + self.num_values + self.num_noise

    @property
    def chance(self) -> float:
        """Share of right answers without sight of the pairs."""
        return 1 / self.num_values


def out_of_reach(*, num_layers: int, window: int, chunk: int) -> int:
    """A gap that no chain of raw reads spans: what crosses it went through summaries.

    A text token reads at most `(window + 1) * chunk - 1` tokens back in one layer, by chunks or by tokens,
    and so many more in each layer above it. A model with an unbounded layer reads past any gap.
    """
    return num_layers * (window + 1) * chunk


def recall_batch(task: RecallTask, batch_size: int, seed: int, *parts: int | str) -> RecallBatch:
    """Rows of the stream named by a seed and parts, such as `(seed, "train", step)`: equal names, equal rows.

    Args:
        task: How rows are made.
        batch_size: B.
        seed: Any number.
        parts: The name of the stream.
    """
    rng = numpy_generator(seed, "recall", *parts)
    rows = np.arange(batch_size)[:, None]
    key_BP = rng.random((batch_size, task.num_keys)).argsort(axis=1)[:, : task.num_pairs]
    value_BP = task.num_keys + rng.integers(0, task.num_values, key_BP.shape)
    pair_BS = _pairs(task, batch_size, rng)
    held_BS2 = np.stack((key_BP[rows, pair_BS], value_BP[rows, pair_BS]), axis=2)
    noise_BS2 = task.num_keys + task.num_values + rng.integers(0, task.num_noise, held_BS2.shape)
    token_BS2 = np.where(pair_BS[..., None] == _NOISE, noise_BS2, held_BS2)
    label_BS2 = np.full_like(token_BS2, IGNORED)
    label_BS2[..., 1] = np.where(_seen(pair_BS, task.num_pairs), token_BS2[..., 1], IGNORED)
    if task.name_keys:
        # A slot's first label is predicted from the last token of the slot before it.
        held_BS = np.where(pair_BS == _NOISE, IGNORED, token_BS2[..., 0])
        label_BS2[:, 1:, 0] = held_BS[:, :-1]
    token_BT, label_BT = (each.reshape(batch_size, task.length) for each in (token_BS2, label_BS2))
    return RecallBatch(torch.from_numpy(token_BT), torch.from_numpy(label_BT))


def recall_accuracy(logits_BTV: Tensor, label_BT: Tensor) -> float:
    """Share of the labels that the largest logit of the place before them names."""
    wanted_N = label_BT[:, 1:].reshape(-1)
    best_N = logits_BTV[:, :-1].argmax(dim=-1).reshape(-1)
    asked_N = wanted_N != IGNORED
    return float((best_N == wanted_N)[asked_N].float().mean())


def _pairs(task: RecallTask, batch_size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which pair stands in each slot, `(B, S)`; `_NOISE` for none."""
    num_early = (task.length - task.gap) // 2 - task.num_queries
    early_BS = rng.integers(0, task.num_pairs, (batch_size, num_early))
    early_BS[rng.random(early_BS.shape) >= task.repeats] = _NOISE
    once_BP = rng.random(early_BS.shape).argsort(axis=1)[:, : task.num_pairs]
    np.put_along_axis(early_BS, once_BP, np.arange(task.num_pairs)[None], axis=1)
    gap_BS = np.full((batch_size, task.gap // 2), _NOISE)
    rounds = -(-task.num_queries // task.num_pairs)
    asked_BRP = rng.random((batch_size, rounds, task.num_pairs)).argsort(axis=2)
    asked_BQ = asked_BRP.reshape(batch_size, -1)[:, : task.num_queries]
    return np.concatenate((early_BS, gap_BS, asked_BQ), axis=1)


def _seen(pair_BS: npt.NDArray[np.int64], num_pairs: int) -> npt.NDArray[np.bool_]:
    """Slots whose pair stands in an earlier slot, too."""
    here_BSP = pair_BS[..., None] == np.arange(num_pairs)
    return np.asarray((here_BSP & (here_BSP.cumsum(axis=1) > 1)).any(axis=2))
