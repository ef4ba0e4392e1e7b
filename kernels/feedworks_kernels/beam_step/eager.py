"""beam_step over the children that exist: one pass over the logits, then ragged PyTorch operations.

An operation that finds its code and data out of the cache, as behind a model, costs some 10 us: their number
matters as much as their size.

Shape letters: B searches, K live beams of each, R = B * K, C codes, W beams kept, M beams of one block,
T children of all beams together, G groups of H children of one search, S children that survive the threshold.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Logits of one block of beams: three passes over 2 MiB stay near the core. A GPU wants few launches instead.
_BLOCK_BYTES, _BLOCK_BYTES_CUDA = 2 << 20, 1 << 28
# Up to this many children a search is sorted as it is; above, a threshold thins them first.
_SORT_LIMIT = 128
# Within these bounds a sum of exponentials taken without subtracting the maximum has lost nothing in fp32.
_SAFE_SUM = (1e-20, 1e30)


class _Children(NamedTuple):
    """All children of all live beams, ordered by search, then beam, then code."""

    beam_T: Tensor  # number of the beam in R
    node_T: Tensor
    code_T: Tensor
    totals: list[int]  # children of each search


def beam_step(
    logits_BKC: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    child_start: Tensor,
    child_code: Tensor,
    width: int,
    normalise: str,
) -> tuple[Tensor, ...]:
    """Extend, thin, sort, cut. Arguments and result as `feedworks_kernels.beam_step`, which checks them."""
    work = torch.float64 if logits_BKC.dtype == torch.float64 else torch.float32
    num_beams, num_codes = logits_BKC.shape[1:]
    live_BK = score_BK > -torch.inf
    children = _children(node_BK, live_BK, child_start, child_code, num_codes)
    place_T = torch.add(children.code_T, children.beam_T, alpha=num_codes)
    logits_RC = logits_BKC.reshape(-1, num_codes)
    # index_select takes a third of the time of take or indexing, hence the flat views.
    if normalise == "codebook":
        norm_R = _logsumexp(logits_RC, live_BK.reshape(-1), work)
        logit_T = logits_RC.reshape(-1).index_select(0, place_T).to(work)
    else:
        logit_T = logits_RC.reshape(-1).index_select(0, place_T).to(work)
        norm_R = _logsumexp_of_children(logit_T, children.beam_T, live_BK.numel())
    shift_R = score_BK.reshape(-1).to(work) - norm_R
    score_T = logit_T.add_(shift_R.index_select(0, children.beam_T))
    return _best(score_T, children, num_beams, width)


def _children(
    node_BK: Tensor, live_BK: Tensor, child_start: Tensor, child_code: Tensor, num_codes: int
) -> _Children:
    node_R = (node_BK * live_BK).reshape(-1)
    try:
        low_R = child_start.index_select(0, node_R).long()
        high_R = child_start.index_select(0, node_R + 1)
    except IndexError:
        raise ValueError(f"node: a live beam is outside [0, {child_start.shape[0] - 1})") from None
    count_R = (high_R - low_R).mul_(live_BK.reshape(-1))
    beam_T = torch.repeat_interleave(count_R)
    # The first child of beam r stands at place cumsum - count of T and is node low, and low + count is high.
    shift_R = high_R - count_R.cumsum(0)
    node_T = torch.arange(beam_T.shape[0], device=beam_T.device).add_(shift_R.index_select(0, beam_T))
    code_T = child_code.index_select(0, node_T).long()
    if code_T.numel():
        least, most = (int(bound) for bound in torch.aminmax(code_T))
        if least < 0 or most >= num_codes:
            raise ValueError(f"child_code: {least} .. {most} exceeds the {num_codes} logits of a beam")
    one = live_BK.shape[0] == 1
    totals = [code_T.shape[0]] if one else count_R.view(live_BK.shape).sum(dim=1).tolist()
    return _Children(beam_T, node_T, code_T, totals)


def _logsumexp(logits_RC: Tensor, live_R: Tensor, work: torch.dtype) -> Tensor:
    """Over the whole codebook; of no meaning for empty beams.

    Summed as powers of two without looking for the maximum first, and done again with it where that was
    unsafe: 0.7 of the time of log_softmax and 0.35 of that of torch.logsumexp on a CPU.
    """
    num_rows, num_codes = logits_RC.shape
    block_bytes = _BLOCK_BYTES_CUDA if logits_RC.is_cuda else _BLOCK_BYTES
    rows = max(1, min(num_rows, block_bytes // (num_codes * work.itemsize)))
    power_MC = torch.empty(rows, num_codes, dtype=work, device=logits_RC.device)
    sum_R = torch.empty(num_rows, dtype=work, device=logits_RC.device)
    for logits_MC, sum_M in zip(torch.split(logits_RC, rows), torch.split(sum_R, rows), strict=True):
        block_MC = power_MC[: logits_MC.shape[0]]
        torch.mul(logits_MC.to(work), math.log2(math.e), out=block_MC).exp2_()
        torch.sum(block_MC, dim=1, out=sum_M)
    low, high = (float(bound) for bound in torch.aminmax(sum_R)) if num_rows else (1.0, 1.0)
    norm_R = sum_R.log()
    if _SAFE_SUM[0] < low and high < _SAFE_SUM[1]:
        return norm_R
    unsafe_R = ~((sum_R > _SAFE_SUM[0]) & (sum_R < _SAFE_SUM[1]))
    norm_R[unsafe_R] = torch.logsumexp(logits_RC[unsafe_R].to(work), dim=1)
    return _checked(norm_R.masked_fill_(~live_R, 0))


def _logsumexp_of_children(logit_T: Tensor, beam_T: Tensor, num_rows: int) -> Tensor:
    """Over each beam's children."""
    high_R = logit_T.new_full((num_rows,), -torch.inf).scatter_reduce(0, beam_T, logit_T, "amax")
    high_R.masked_fill_(high_R == -torch.inf, 0)
    power_T = (logit_T - high_R.index_select(0, beam_T)).exp_()
    return _checked(high_R + logit_T.new_zeros(num_rows).index_add_(0, beam_T, power_T).log_())


def _checked(norm_R: Tensor) -> Tensor:
    if not (norm_R < torch.inf).all():
        raise ValueError("logits: a live beam holds NaN or +inf; expected finite values or -inf")
    # Nothing but -inf, or no child at all: what is there to be shifted is -inf and stays so.
    return norm_R.masked_fill_(norm_R == -torch.inf, 0)


def _best(score_T: Tensor, children: _Children, num_beams: int, width: int) -> tuple[Tensor, ...]:
    """The `width` best children of every search, equal scores in the order they stand in."""
    num_searches = len(children.totals)
    kept_S = _worth_sorting(score_T, children.totals, width)
    score_S, order_S = score_T.index_select(0, kept_S).sort(descending=True, stable=True)
    place_S = None
    if num_searches == 1:
        score_S, order_S = score_S[:width], order_S[:width]
    else:
        search_S = children.beam_T.index_select(0, kept_S[order_S]) // max(num_beams, 1)
        first_S, place_S = _first_of_each(search_S, width)
        score_S, order_S = score_S[first_S], order_S[first_S]
    kept_S = kept_S.index_select(0, order_S)

    def table(values_S: Tensor, empty: float) -> Tensor:
        if place_S is None and values_S.shape[0] == width:
            return values_S.view(1, width)
        out = values_S.new_full((num_searches * width,), empty)
        out[slice(values_S.shape[0]) if place_S is None else place_S] = values_S
        return out.view(num_searches, width)

    parent_BW = table(children.beam_T.index_select(0, kept_S), 0)
    if num_searches > 1:
        parent_BW %= max(num_beams, 1)
    code_BW = table(children.code_T.index_select(0, kept_S), 0)
    return table(score_S, -torch.inf), parent_BW, code_BW, table(children.node_T.index_select(0, kept_S), 0)


def _first_of_each(search_S: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The first `width` of each search, and where they go in the flat result."""
    search_S, order_S = search_S.sort(stable=True)
    rank_S = torch.arange(search_S.shape[0], device=search_S.device) - torch.searchsorted(search_S, search_S)
    inside_S = rank_S < width
    return order_S[inside_S], (search_S * width + rank_S)[inside_S]


def _worth_sorting(score_T: Tensor, totals: list[int], width: int) -> Tensor:
    """Places of the children that can be among their search's `width` best, and of few others.

    The `width`-th largest of the maxima of disjoint groups is never above the `width`-th largest child, and
    maxima are cheap where a selection over all children is not. A group takes every G-th child, so that the
    children of one good beam fall into many groups.
    """
    most = max(totals, default=0)
    if most <= max(_SORT_LIMIT, 2 * width):
        return torch.nonzero(score_T > -torch.inf).squeeze(1)
    num_groups = 4 * width
    size = -(-most // num_groups)
    padded_BX = score_T.new_full((len(totals), size * num_groups), -torch.inf)
    for row_X, scores in zip(padded_BX, torch.split(score_T, totals), strict=True):
        row_X[: scores.shape[0]] = scores
    top_BG = padded_BX.view(-1, size, num_groups).amax(dim=1)
    least_B = top_BG.topk(width, sorted=False).values.amin(dim=1)
    least_B.clamp_min_(torch.finfo(score_T.dtype).min)
    if len(totals) > 1:
        least_B = least_B.repeat_interleave(torch.tensor(totals, device=score_T.device))
    return torch.nonzero(score_T >= least_B).squeeze(1)
