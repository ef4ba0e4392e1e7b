"""Associative recall: the smallest task that a model can only solve by what it read far away.

A row holds pairs of a key and a value early among noise, then at least `gap` tokens of noise, then some of
the keys again, each followed by its value. Every value is drawn by itself, so nothing else tells it: who
does not see the pairs is right `1 / num_values` of the time. (The dossier's property 12; the task is that of
Arora et al., Zoology, arXiv 2312.04927, with the pairs kept away from the questions.)

Ids: keys from 0, then values, then noise. Shapes: B rows, T tokens, P pairs, Q questions, V vocabulary.
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


class RecallBatch(NamedTuple):
    """Rows of the task.

    Attributes:
        input_ids_BT: int64 ids; a question's value stands in it, too.
        label_BT: the ids of the values that are asked for in their own places, -100 elsewhere; a model
            predicts the label at `t` from the tokens before `t`, as in transformers.
    """

    input_ids_BT: Tensor
    label_BT: Tensor


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """How rows are made.

    Attributes:
        length: T, tokens of a row.
        gap: tokens of noise between the last pair and the first question, at the least.
        least_gap: where given, each row draws its gap from here to `gap`: an easier task to begin with.
        num_pairs: P, pairs of a row, each with a key of its own.
        num_queries: Q, pairs that are asked for, at most P; the last 2 Q tokens.
        num_keys: different keys.
        num_values: different values.
        num_noise: different tokens of noise.

    Raises:
        ConfigError: The pairs do not fit before the gap, or a number is out of its range.
    """

    length: int
    gap: int
    least_gap: int | None = None
    num_pairs: int = 8
    num_queries: int = 4
    num_keys: int = 64
    num_values: int = 64
    num_noise: int = 64

    def __post_init__(self) -> None:
        counts = (self.num_pairs, self.num_queries, self.num_values - 1, self.num_noise, self.gap + 1)
        if min(counts) < 1 or not self.num_queries <= self.num_pairs <= self.num_keys:
            raise ConfigError(
                f"recall: expected 1 <= num_queries <= num_pairs <= num_keys, two values, some noise and no "
                f"gap below 0, not {self}"
            )
        if self.least_gap is not None and not 0 <= self.least_gap <= self.gap:
            raise ConfigError(f"recall: least_gap={self.least_gap} is not between 0 and gap={self.gap}")
        least = 2 * (self.num_pairs + self.num_queries) + self.gap + 1
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
    token_BT = task.num_keys + task.num_values + rng.integers(0, task.num_noise, (batch_size, task.length))
    key_BP = rng.random((batch_size, task.num_keys)).argsort(axis=1)[:, : task.num_pairs]
    value_BP = task.num_keys + rng.integers(0, task.num_values, key_BP.shape)
    place_BP = _places(task, batch_size, rng)
    token_BT[rows, place_BP] = key_BP
    token_BT[rows, place_BP + 1] = value_BP
    asked_BQ = rng.random(key_BP.shape).argsort(axis=1)[:, : task.num_queries]
    question = task.length - 2 * task.num_queries
    token_BT[:, question::2] = key_BP[rows, asked_BQ]
    token_BT[:, question + 1 :: 2] = value_BP[rows, asked_BQ]
    label_BT = np.full_like(token_BT, IGNORED)
    label_BT[:, question + 1 :: 2] = token_BT[:, question + 1 :: 2]
    return RecallBatch(torch.from_numpy(token_BT), torch.from_numpy(label_BT))


def recall_accuracy(logits_BTV: Tensor, label_BT: Tensor) -> float:
    """Share of the labels that the largest logit of the place before them names."""
    wanted_N = label_BT[:, 1:].reshape(-1)
    best_N = logits_BTV[:, :-1].argmax(dim=-1).reshape(-1)
    asked_N = wanted_N != IGNORED
    return float((best_N == wanted_N)[asked_N].float().mean())


def _places(task: RecallTask, batch_size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Where each pair begins, `(B, P)`: any two free tokens before the row's gap."""
    longest = task.length - 2 * task.num_queries
    least = task.gap if task.least_gap is None else task.least_gap
    end_B1 = longest - rng.integers(least, task.gap + 1, (batch_size, 1))
    shift_B1 = rng.integers(0, 2, (batch_size, 1))
    slot_BS = rng.random((batch_size, longest // 2))
    # A slot is two tokens; those that do not end before the gap are drawn last.
    too_late_BS = 2 * np.arange(slot_BS.shape[1]) + shift_B1 + 2 > end_B1
    drawn_BP = (slot_BS + too_late_BS).argsort(axis=1)[:, : task.num_pairs]
    return 2 * drawn_BP + shift_B1
