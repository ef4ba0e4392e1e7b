"""OCARM (arXiv 2604.25839): retention loss with missing labels, and the similarities of stage 2.

The weights of the terms are the caller's. Shape legend: B rows, H horizons, D width of a vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from feedworks.ocarm.config import Similarity


def retention_loss(logit_BH: Tensor, label_BH: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels that there are.

    Args:
        logit_BH: of the model.
        label_BH: revisit frequency in [0, 1] as a soft target; NaN where it is not known.
    """
    known_BH = ~label_BH.isnan()
    loss_BH = F.binary_cross_entropy_with_logits(logit_BH, label_BH.nan_to_num(), reduction="none")
    return (loss_BH * known_BH).sum() / known_BH.sum().clamp(min=1)


def alignment_loss(
    own_BHD: Tensor, teacher_BHD: Tensor, similarity: Similarity, temperature: float = 0.1
) -> Tensor:
    """L_align: distance of the student's vectors from the teacher's, summed over horizons, mean over rows.

    No gradient reaches `teacher_BHD`. Rows whose teacher vector holds NaN have no target and are left out.

    Args:
        own_BHD: e_u.
        teacher_BHD: e_c.
        similarity: `cosine`: 1 - cos, in [0, 2]; `mse`: mean squared difference; `infonce`: cross-entropy of
            finding one's own teacher vector among those of the batch, of several processes the own part.
        temperature: of `infonce`.
    """
    teacher_BHD = teacher_BHD.detach()
    known_B = _taught(teacher_BHD)
    teacher_BHD = teacher_BHD.masked_fill(~known_B[:, None, None], 0)
    match similarity:
        case "cosine":
            loss_BH = 1 - F.cosine_similarity(own_BHD, teacher_BHD, dim=-1)
        case "mse":
            loss_BH = (own_BHD - teacher_BHD).square().mean(dim=-1)
        case "infonce":
            loss_BH = _infonce(own_BHD, teacher_BHD, known_B, temperature)
    return (loss_BH.sum(dim=-1) * known_B).sum() / known_B.sum().clamp(min=1)


def num_labels(label_BH: Tensor) -> Tensor:
    """How many labels `retention_loss` is the mean over."""
    return (~label_BH.isnan()).sum()


def num_taught(teacher_BHD: Tensor) -> Tensor:
    """How many rows `alignment_loss` is the mean over."""
    return _taught(teacher_BHD).sum()


def _taught(teacher_BHD: Tensor) -> Tensor:
    return ~teacher_BHD.isnan().any(dim=-1).any(dim=-1)


def _infonce(own_BHD: Tensor, teacher_BHD: Tensor, known_B: Tensor, temperature: float) -> Tensor:
    own_HBD, teacher_HBD = (F.normalize(x, dim=-1).transpose(0, 1) for x in (own_BHD, teacher_BHD))
    logit_HBB = own_HBD @ teacher_HBD.transpose(1, 2) / temperature
    # A row's own logit stays finite even where it has no target; it is not counted.
    hidden_BB = ~known_B[None, :] & ~torch.eye(len(known_B), dtype=torch.bool, device=known_B.device)
    logit_HBB = logit_HBB.masked_fill(hidden_BB, float("-inf"))
    own_HB = logit_HBB.diagonal(dim1=1, dim2=2)
    return (logit_HBB.logsumexp(dim=-1) - own_HB).transpose(0, 1)
