"""KSA (arXiv 2604.24432): loss on held-out text, whole and by how much of it a token could read.

Shape legend: B rows of a batch, R rows, T tokens of a row, N tokens of the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feedworks.errors import DataError
from feedworks.ksa.losses import next_token_losses

LOSS = "valid/loss"
MONITOR = "valid/log_likelihood"  # the loss with its sign turned: of a monitored metric more is better


class HeldOut(NamedTuple):
    """Cross-entropy in nats per token.

    Attributes:
        loss: mean over all tokens that were predicted.
        num_tokens: how many.
        bucket_losses: means over the tokens with `borders[i - 1] <= tokens before them < borders[i]`.
    """

    loss: float
    num_tokens: int
    bucket_losses: list[float]


def rows_of(
    token_N: npt.NDArray[Any], seq_len: int, max_rows: int = 0, *, setting: str = "seq_len"
) -> Tensor:
    """Return windows (R, T) of a text that do not overlap, spread over it where only some are asked for.

    Args:
        token_N: the text.
        seq_len: tokens of a row.
        max_rows: rows at most; 0 for all.
        setting: where the user sets `seq_len`, for the error.

    Raises:
        DataError: the text is shorter than a row.
    """
    num_rows = len(token_N) // seq_len
    if not num_rows:
        raise DataError(
            f"the held-out text has {len(token_N):,} tokens, less than a row of {seq_len}; "
            f"bring more text or lower {setting}"
        )
    num_kept = min(num_rows, max_rows or num_rows)
    chosen = np.arange(num_kept) * num_rows // num_kept
    rows_RT = np.stack([token_N[row * seq_len : (row + 1) * seq_len] for row in chosen]).astype(np.int64)
    return torch.from_numpy(rows_RT)


@torch.no_grad()
def heldout_loss(
    model: Any, input_ids_RT: Tensor, *, batch_size: int = 8, borders: Sequence[int] = ()
) -> HeldOut:
    """Measure a model on rows, on its device and in its mode.

    Args:
        model: a `feedworks.ksa.model.Qwen3KsaForCausalLM`.
        input_ids_RT: token ids; a row's first is not predicted.
        batch_size: rows computed at once.
        borders: numbers of tokens before the predicted one, rising; buckets lie before, between and behind
            those within a row.
    """
    device = model.lm_head.weight.device
    total_T = torch.zeros(input_ids_RT.shape[1] - 1, dtype=torch.float64)
    for input_ids_BT in torch.split(input_ids_RT, batch_size):
        input_ids_BT = input_ids_BT.to(device)
        states_BTD = model.model.text_states(input_ids_BT)
        loss_BT = next_token_losses(states_BTD, model.lm_head.weight, input_ids_BT)
        total_T += loss_BT.double().sum(dim=0).cpu()
    num_rows, num_tokens = len(input_ids_RT), len(total_T) * len(input_ids_RT)
    # Place 0 of the sums has one token before it.
    edges = [0, *(border - 1 for border in borders if 1 < border <= len(total_T)), len(total_T)]
    buckets = [float(total_T[a:b].mean()) / num_rows for a, b in itertools.pairwise(edges) if a < b]
    return HeldOut(float(total_T.sum()) / num_tokens, num_tokens, buckets)


def evaluation(
    input_ids_RT: Tensor, *, batch_size: int = 8, bfloat16: bool = False
) -> Callable[[Any, int], dict[str, float]]:
    """Return what a stage takes for `evaluate`: the loss, and with its sign turned the metric that chooses.

    Args:
        input_ids_RT: held-out rows, see `rows_of`.
        batch_size: rows computed at once.
        bfloat16: compute as training with `bf16-mixed` does, several times faster and to 1e-3.
    """

    def evaluate(model: Any, epoch: int) -> dict[str, float]:
        with torch.autocast(model.lm_head.weight.device.type, torch.bfloat16, enabled=bfloat16):
            loss = heldout_loss(model, input_ids_RT, batch_size=batch_size).loss
        return {LOSS: loss, MONITOR: -loss}

    return evaluate
