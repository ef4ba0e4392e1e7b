"""RecoChain (arXiv 2604.25787): the losses of both stages as pure functions.

Shape legend: P positions with a target, L levels, C codes, B rows, K candidates.
"""

from __future__ import annotations

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
