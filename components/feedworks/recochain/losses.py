"""RecoChain (arXiv 2604.25787): the losses of both stages as pure functions.

Shape legend: P positions with a target, L levels, C codes, M drawn items, N items, B rows,
K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def generation_loss(logits_PC: Sequence[Tensor], code_PL: Tensor) -> Tensor:
    """Mean over positions of the negative log-probability of the whole semantic ID.

    Args:
        logits_PC: one tensor per level.
        code_PL: the true codes.
    """
    losses = [F.cross_entropy(logits, code_PL[:, level]) for level, logits in enumerate(logits_PC)]
    return torch.stack(losses).sum()


def item_loss(own_P: Tensor, other_PM: Tensor, num_items: int) -> Tensor:
    """Mean negative log-probability of the true item in a softmax over the catalogue, exact or sampled.

    Each of M uniform draws speaks for N / M items (sampled softmax; Jean et al., ACL 2015); with all N items
    in place of the draws this is the exact softmax.

    Args:
        own_P: score of the true item.
        other_PM: scores of the drawn items, -inf where the true item was drawn.
        num_items: N.
    """
    other_P = other_PM.logsumexp(dim=1) + math.log(num_items / other_PM.shape[1])
    return F.softplus(other_P - own_P).mean()


def rank_loss(logits_BK: Tensor, present_BK: Tensor, kind: str) -> Tensor:
    """Loss of ranking the candidate in column 0 above the others.

    Args:
        logits_BK: click logits.
        present_BK: which candidates are real; column 0 always is.
        kind: `bce`, every candidate on its own, or `listwise`, a softmax over the row.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "listwise":
        masked_BK = logits_BK.masked_fill(~present_BK, -torch.inf)
        return F.cross_entropy(masked_BK, torch.zeros_like(logits_BK[:, 0], dtype=torch.long))
    if kind != "bce":
        raise ValueError(f"rank loss {kind!r}: expected bce or listwise")
    label_BK = torch.zeros_like(logits_BK)
    label_BK[:, 0] = 1
    return F.binary_cross_entropy_with_logits(logits_BK[present_BK], label_BK[present_BK])
