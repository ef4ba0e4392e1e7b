"""The best places of every row in a defined order, which a top-k alone does not give where scores are equal.

Shape letters: B searches, F places, G groups of H places, W = `width`, N places that are chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Up to this many places the best are chosen from all of them at once.
_FEW_PLACES = 1 << 12


class Best(NamedTuple):
    """Scores and places of the best of every search, best first, equal scores in the order of places."""

    score_BN: Tensor
    place_BN: Tensor
    some_empty: bool  # a place may be empty, of score -inf


def best_of(score_BF: Tensor, width: int) -> Best | None:
    """The `width` best of every search; None if there is a NaN.

    They lie in the groups of the largest maxima, and maxima are cheap where a choice among all is not. One
    more than asked for is chosen each time: if no two of those are equal, no equal one was left out either.

    Args:
        score_BF: -inf marks a place that cannot be chosen.
        width: W, at least 1.
    """
    num_searches, num_places = score_BF.shape
    size = _group_size(num_searches, num_places, width)
    wanted = min(width + 1, num_places)
    score_BN, place_BN, top_BG = score_BF, None, score_BF
    if size > 1:
        top_BG = score_BF.view(num_searches, size, -1).amax(dim=1)
        place_BN = _places(top_BG.topk(wanted, dim=1, sorted=False).indices, num_places // size, num_places)
        score_BN = score_BF.gather(1, place_BN)
    score_BN, order_BN = score_BN.topk(wanted, dim=1)
    place_BN = order_BN if place_BN is None else place_BN.gather(1, order_BN)
    if wanted == 1:
        return None if score_BN.isnan().any() else Best(score_BN, place_BN, True)
    gap_BN = score_BN[:, :-1] - score_BN[:, 1:]
    least, most = (float(bound) for bound in torch.aminmax(gap_BN))
    if not (least > 0 and most < torch.inf):
        if score_BN[:, 0].isnan().any():
            return None
        equal_BN = gap_BN == 0  # between two empty places the gap is NaN
        if equal_BN[:, width - 1 :].any():
            return _best_of_equal(score_BF, top_BG, score_BN[:, width - 1 : width], width)
        if equal_BN.any():
            place_BN = place_BN[:, :width].sort(dim=1).values
            score_BN, order_BN = score_BF.gather(1, place_BN).sort(dim=1, descending=True, stable=True)
            place_BN = place_BN.gather(1, order_BN)
    return Best(score_BN[:, :width], place_BN[:, :width], not most < torch.inf)


def best_of_rows(score_PX: Tensor | None, most: int | None) -> Tensor | None:
    """Leave the best `most` of every row, the first of equal ones, and put -inf elsewhere. A NaN stays."""
    if score_PX is None or most is None or most >= score_PX.shape[1]:
        return score_PX
    least_P1 = score_PX.topk(most, dim=1).values[:, -1:]
    better_PX, equal_PX = score_PX > least_P1, score_PX == least_P1
    room_P1 = most - better_PX.sum(dim=1, keepdim=True)
    kept_PX = better_PX | (equal_PX & (equal_PX.cumsum(dim=1) <= room_P1)) | score_PX.isnan()
    return score_PX.masked_fill(~kept_PX, -torch.inf)


def _group_size(num_searches: int, num_places: int, width: int) -> int:
    """Places of one group: a power of 2 that divides their number, such that both choices are among few."""
    size = 1
    if num_searches * num_places > _FEW_PLACES:
        while num_places % (2 * size) == 0 and 4 * size * size * width <= num_places:
            size *= 2
    return size


def _best_of_equal(score_BF: Tensor, top_BG: Tensor, least_B1: Tensor, width: int) -> Best:
    """The same where equal scores stand on both sides of the cut: nothing as good as `least` is left out."""
    least_B1 = least_B1.clamp_min(torch.finfo(score_BF.dtype).min)
    place_BN = _places(_no_less(top_BG, least_B1), top_BG.shape[1], score_BF.shape[1])
    place_BN = place_BN.gather(1, _no_less(score_BF.gather(1, place_BN), least_B1))
    best = score_BF.gather(1, place_BN).sort(dim=1, descending=True, stable=True)
    return Best(best.values[:, :width], place_BN.gather(1, best.indices[:, :width]), True)


def _no_less(score_BN: Tensor, least_B1: Tensor) -> Tensor:
    """Places, rising, of the scores not below `least`; of lesser ones too in rows that have fewer."""
    most = int((score_BN >= least_B1).sum(dim=1).max())
    return score_BN.topk(most, dim=1, sorted=False).indices.sort(dim=1).values


def _places(group_BN: Tensor, num_groups: int, num_places: int) -> Tensor:
    """Places of groups that take every G-th place each, rising where the groups rise."""
    first_H1 = torch.arange(0, num_places, num_groups, device=group_BN.device).unsqueeze(1)
    return (first_H1 + group_BN.unsqueeze(1)).flatten(1)
