"""beam_step by its definition: one beam at a time, every child written out. The tests hold others to it.

Shape letters: B searches, K live beams of each, C codes, W beams kept, M children of one search.
"""

from __future__ import annotations

import torch
from torch import Tensor


def beam_step(
    logits_BKC: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    child_start: Tensor,
    child_code: Tensor,
    width: int,
    normalise: str,
    per_beam: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Extend, sort, cut. Arguments and result as `feedworks_kernels.beam_step`, which checks them."""
    work = torch.float64 if logits_BKC.dtype == torch.float64 else torch.float32
    B, K, _ = logits_BKC.shape
    device = logits_BKC.device
    score_BW = torch.full((B, width), -torch.inf, dtype=work, device=device)
    parent_BW, code_BW, node_BW = (torch.zeros(B, width, dtype=torch.int64, device=device) for _ in range(3))
    for b in range(B):
        live = [k for k in range(K) if score_BK[b, k] > -torch.inf]
        if not live:
            continue
        extended = [
            _children(
                logits_BKC[b, k].to(work),
                score_BK[b, k],
                int(node_BK[b, k]),
                child_start,
                child_code,
                normalise,
                per_beam,
            )
            for k in live
        ]
        score_M, code_M, node_M = (torch.cat(parts) for parts in zip(*extended, strict=True))
        parent_M = torch.cat(
            [torch.full_like(codes, k) for k, (_, codes, _) in zip(live, extended, strict=True)]
        )
        best = torch.sort(score_M, descending=True, stable=True).indices[:width]
        best = best[score_M[best] > -torch.inf]
        n = best.shape[0]
        score_BW[b, :n], parent_BW[b, :n] = score_M[best], parent_M[best]
        code_BW[b, :n], node_BW[b, :n] = code_M[best], node_M[best]
    return score_BW, parent_BW, code_BW, node_BW


def _children(
    logits_C: Tensor,
    score: Tensor,
    node: int,
    child_start: Tensor,
    child_code: Tensor,
    normalise: str,
    per_beam: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, codes and node numbers of all children of one beam, or of its best."""
    low, high = int(child_start[node]), int(child_start[node + 1])
    nodes = torch.arange(low, high, device=logits_C.device)
    codes = child_code[low:high].long()
    read, wanted = (logits_C, codes) if normalise == "codebook" else (logits_C[codes], slice(None))
    if not (read < torch.inf).all():
        raise ValueError("logits: a live beam holds NaN or +inf; expected finite values or -inf")
    log_p = torch.log_softmax(read, dim=0)[wanted]
    # A softmax over logits that are all -inf is 0/0; such a beam has no possible child.
    scores = score.to(logits_C.dtype) + log_p.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    best = torch.sort(scores, descending=True, stable=True).indices[:per_beam].sort().values
    return scores[best], codes[best], nodes[best]
