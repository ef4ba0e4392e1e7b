"""beam_step over the children that exist: one reduction over the logits, then ragged PyTorch operations.

Shape letters: B searches, K live beams of each, C codes, W beams kept, T children of all beams together,
P the most children that one search has (rounded up), G groups of P, S children that survive the threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Below this many candidates a search is sorted as it is; above, a threshold thins it first.
_SORT_LIMIT = 1024


class _Children(NamedTuple):
    """All children of all live beams, ordered by search, then beam, then code."""

    beam_T: Tensor  # number of the beam in B*K
    node_T: Tensor
    code_T: Tensor
    total_B: Tensor  # children of each search


def beam_step(
    logits_BKC: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    child_start: Tensor,
    child_code: Tensor,
    width: int,
    normalise: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Extend, sort, cut. Arguments and result as `feedworks_kernels.beam_step`, which checks them."""
    work = torch.float64 if logits_BKC.dtype == torch.float64 else torch.float32
    _, num_beams, num_codes = logits_BKC.shape
    live_BK = score_BK > -torch.inf
    children = _children(node_BK, live_BK, child_start, child_code)
    if children.code_T.numel() and int(children.code_T.max()) >= num_codes:
        raise ValueError(f"child_code holds codes beyond the {num_codes} logits of a beam")
    logit_T = logits_BKC.reshape(-1)[children.beam_T * num_codes + children.code_T].to(work)
    if normalise == "codebook":
        norm_BK = torch.logsumexp(logits_BKC.to(work), dim=2)
    else:
        norm_BK = _segment_logsumexp(logit_T, children.beam_T, live_BK)
    _refuse_nan(norm_BK, live_BK)
    shift_BK = torch.where(norm_BK > -torch.inf, score_BK.to(work) - norm_BK, -torch.inf)
    score_T = logit_T + shift_BK.reshape(-1)[children.beam_T]
    return _best(score_T, children, num_beams, width)


def _children(node_BK: Tensor, live_BK: Tensor, child_start: Tensor, child_code: Tensor) -> _Children:
    node_BK = torch.where(live_BK, node_BK, 0)
    if node_BK.numel() and not 0 <= int(node_BK.min()) <= int(node_BK.max()) < child_start.shape[0] - 1:
        raise ValueError(f"node: expected numbers in [0, {child_start.shape[0] - 1}) for live beams")
    low_BK = child_start[node_BK].long()
    count_BK = torch.where(live_BK, child_start[node_BK + 1] - low_BK, 0)
    count = count_BK.reshape(-1)
    beam_T = torch.repeat_interleave(torch.arange(count.shape[0], device=count.device), count)
    first = low_BK.reshape(-1) - (count.cumsum(0) - count)
    node_T = torch.arange(beam_T.shape[0], device=count.device) + first[beam_T]
    return _Children(beam_T, node_T, child_code[node_T].long(), count_BK.sum(dim=1))


def _segment_logsumexp(logit_T: Tensor, beam_T: Tensor, live_BK: Tensor) -> Tensor:
    """Log of the sum of exp over each beam's children; -inf for a beam that has none."""
    high = torch.full((live_BK.numel(),), -torch.inf, dtype=logit_T.dtype, device=logit_T.device)
    high = high.scatter_reduce(0, beam_T, logit_T, "amax")
    high = torch.where(high == -torch.inf, 0, high)
    total = torch.zeros_like(high).index_add(0, beam_T, (logit_T - high[beam_T]).exp())
    return (total.log() + high).view(live_BK.shape)


def _refuse_nan(norm_BK: Tensor, live_BK: Tensor) -> None:
    if norm_BK.is_cuda:
        return
    if not bool((norm_BK < torch.inf).logical_or(~live_BK).all()):
        raise ValueError("logits: a live beam holds NaN or +inf; expected finite values or -inf")


def _best(
    score_T: Tensor, children: _Children, num_beams: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The `width` best children of every search, equal scores in the order they stand in."""
    num_searches = children.total_B.shape[0]
    search_T = children.beam_T // max(num_beams, 1)
    kept_S = torch.nonzero(_above_threshold(score_T, search_T, children.total_B, width)).squeeze(1)
    order = torch.sort(score_T[kept_S], descending=True, stable=True).indices
    if num_searches > 1:
        order = order[torch.sort(search_T[kept_S[order]], stable=True).indices]
    kept_S = kept_S[order]
    search_S = search_T[kept_S]
    counts_B = torch.bincount(search_S, minlength=num_searches)
    rank_S = torch.arange(len(kept_S), device=kept_S.device) - (counts_B.cumsum(0) - counts_B)[search_S]
    inside_S = rank_S < width
    kept_S, place_S = kept_S[inside_S], (search_S * width + rank_S)[inside_S]
    shape = (num_searches, width)

    def placed(values_S: Tensor, empty: float) -> Tensor:
        out = torch.full((num_searches * width,), empty, dtype=values_S.dtype, device=values_S.device)
        return out.index_copy_(0, place_S, values_S).view(shape)

    beam_S = children.beam_T[kept_S]
    return (
        placed(score_T[kept_S], -torch.inf),
        placed(beam_S % max(num_beams, 1), 0),
        placed(children.code_T[kept_S], 0),
        placed(children.node_T[kept_S], 0),
    )


def _above_threshold(score_T: Tensor, search_T: Tensor, total_B: Tensor, width: int) -> Tensor:
    """True for every child that can be among its search's `width` best, False for most others.

    The `width`-th largest of the maxima of disjoint groups is a lower bound of the `width`-th largest child,
    and maxima are cheap where a selection over all children is not.
    """
    possible_T = score_T > -torch.inf
    most = int(total_B.max()) if total_B.numel() else 0
    if most <= max(_SORT_LIMIT, 2 * width):
        return possible_T
    group = max(1, most // (4 * width))
    num_groups = -(-most // group)
    padded_BP = score_T.new_full((total_B.shape[0], num_groups * group), -torch.inf)
    first_B = total_B.cumsum(0) - total_B
    padded_BP[search_T, torch.arange(len(score_T), device=score_T.device) - first_B[search_T]] = score_T
    top_BG = padded_BP.view(-1, num_groups, group).amax(dim=2)
    threshold_B = top_BG.topk(width, dim=1, sorted=False).values.amin(dim=1)
    return possible_T & (score_T >= threshold_B[search_T])
