"""KSA (arXiv 2604.24432): next-token loss, and what the summaries learn from full attention.

Labels lie at the places of their own tokens, -100 where there is none, as in transformers: the state at t is
asked for the label at t + 1. All means run over these targets, so that the parts of a batch, weighed by
`num_targets`, add up to the whole. Logits are made for some targets at a time and made again in the backward
pass, so their memory does not grow with the batch.
Shape legend: B rows, T tokens, D width, V vocabulary, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100
MAX_LOGITS = 1 << 26  # numbers; 256 MB in float32


class TokenTerms(NamedTuple):
    """Means over the targets: cross-entropy, and KL(teacher || student), 0 without a teacher."""

    lm: Tensor
    kl: Tensor


class AttentionTerms(NamedTuple):
    """How far the layers' attention outputs are from the teacher's, mean over layers and targets."""

    mse: Tensor
    cos: Tensor


def num_targets(label_BT: Tensor) -> Tensor:
    """Return how many tokens the loss asks for: labels, but for those of the first tokens."""
    return (label_BT[:, 1:] != IGNORED).sum()


def token_terms(
    states_BTD: Tensor,
    head_VD: Tensor,
    label_BT: Tensor,
    teacher_BTD: Tensor | None = None,
    *,
    max_logits: int = MAX_LOGITS,
) -> TokenTerms:
    """Cross-entropy of the next token in nats and, with a teacher, the distance of its distribution.

    Args:
        states_BTD: normed states of the last layer.
        head_VD: weight of the output layer, of the teacher as well.
        label_BT: see the head of this file.
        teacher_BTD: the teacher's states; no gradient reaches them.
        max_logits: numbers of logits held at once, of each of the two.
    """
    asked_BT = label_BT[:, 1:] != IGNORED
    label_N = label_BT[:, 1:][asked_BT]
    own_ND = states_BTD[:, :-1][asked_BT]
    teacher_ND = None if teacher_BTD is None else teacher_BTD[:, :-1][asked_BT].detach()
    step = max(1, max_logits // len(head_VD))
    lm = kl = own_ND.new_zeros((), dtype=torch.float32)
    for at in range(0, max(1, len(label_N)), step):
        part = slice(at, at + step)
        teacher = None if teacher_ND is None else teacher_ND[part]
        arguments = (own_ND[part], head_VD, label_N[part], teacher)
        if len(label_N) > step and torch.is_grad_enabled():
            found = checkpoint(_sums, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            found = _sums(*arguments)
        lm, kl = lm + found[0], kl + found[1]
    count = max(1, len(label_N))
    return TokenTerms(lm / count, kl / count)


def attention_terms(
    own: Sequence[Tensor], teacher: Sequence[Tensor], label_BT: Tensor, *, clip: float, with_cos: bool = False
) -> AttentionTerms:
    """Mean squared difference, each number at most `clip`, and one minus the cosine.

    A difference beyond the clip has no gradient: a layer that is far off does not drown the others.

    Args:
        own: attention outputs (B, T, D) of the layers, after the output projection.
        teacher: the same of full attention; no gradient reaches them.
        label_BT: as of `token_terms`; the same places are compared.
        clip: of a squared difference.
        with_cos: without it the second term is 0 and costs nothing.
    """
    asked_BT = F.pad(label_BT[:, 1:] != IGNORED, (0, 1))
    count = asked_BT.sum().clamp(min=1)
    mse = cos = torch.zeros((), device=label_BT.device)
    for own_BTD, teacher_BTD in zip(own, teacher, strict=True):
        own_BTD, teacher_BTD = own_BTD.float(), teacher_BTD.detach().float()
        squared_BT = (own_BTD - teacher_BTD).square().clamp(max=clip).mean(dim=-1)
        mse = mse + (squared_BT * asked_BT).sum() / (count * len(own))
        if with_cos:
            away_BT = 1 - F.cosine_similarity(own_BTD, teacher_BTD, dim=-1)
            cos = cos + (away_BT * asked_BT).sum() / (count * len(own))
    return AttentionTerms(mse, cos)


@torch.no_grad()
def next_token_losses(
    states_BTD: Tensor, head_VD: Tensor, input_ids_BT: Tensor, *, max_logits: int = MAX_LOGITS
) -> Tensor:
    """Return the cross-entropy of each token but the first, (B, T - 1) in nats."""
    own_ND, label_N = states_BTD[:, :-1].flatten(0, 1), input_ids_BT[:, 1:].flatten()
    step = max(1, max_logits // len(head_VD))
    parts = [
        F.cross_entropy(
            F.linear(own_ND[at : at + step], head_VD).float(), label_N[at : at + step], reduction="none"
        )
        for at in range(0, len(label_N), step)
    ]
    return torch.cat(parts).view(len(states_BTD), -1)


def _sums(
    own_ND: Tensor, head_VD: Tensor, label_N: Tensor, teacher_ND: Tensor | None
) -> tuple[Tensor, Tensor]:
    log_own_NV = F.linear(own_ND, head_VD).float().log_softmax(dim=-1)
    lm = F.nll_loss(log_own_NV, label_N, reduction="sum")
    if teacher_ND is None:
        return lm, torch.zeros_like(lm)
    with torch.no_grad():
        log_teacher_NV = F.linear(teacher_ND, head_VD).float().log_softmax(dim=-1)
    return lm, F.kl_div(log_own_NV, log_teacher_NV, reduction="sum", log_target=True)
