"""beam_step in Triton: three launches whose sizes the host knows beforehand, so a CUDA graph can hold them.

Shape letters: B searches, K live beams of each, C codes, W beams kept, S slots of a beam (its best children).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from feedworks_kernels._device import on
from feedworks_kernels.beam_step import eager
from feedworks_kernels.beam_step.beams_kernel import extend_kernel, filter_kernel, rank_kernel

# What the kernels hand to the compiler: Triton warns where fusing a * b + c is left to its default.
OPTIONS = {"enable_fp_fusion": True}
# One program holds the children of a beam, or the group maxima of a search, in registers.
MOST_PLACES = 1 << 13
_PROGRAMS = 264  # two for every multiprocessor
_RANKED = 32  # children that one program ranks


class Sizes(NamedTuple):
    """What the three kernels agree on: places of a beam's children, kept ones, groups, and powers of 2."""

    slots: int
    groups: int
    block_x: int
    block_g: int


def beam_step(
    logits_BKC: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    child_start: Tensor,
    child_code: Tensor,
    width: int,
    normalise: str,
    per_beam: int | None,
) -> tuple[Tensor, ...]:
    """Extend, filter, rank. Arguments and result as `feedworks_kernels.beam_step`, which checks them."""
    num_searches, num_beams, num_codes = logits_BKC.shape
    # A node's codes are distinct, so that neither number of children nor of codes can be exceeded.
    places = min(num_codes, child_code.shape[0])
    if not num_searches * num_beams * places:
        dead_BW = torch.full((num_searches, width), -torch.inf, device=logits_BKC.device)
        return dead_BW.to(_work(logits_BKC)), *(
            torch.zeros_like(dead_BW, dtype=torch.int64) for _ in range(3)
        )
    sizes = _sizes(num_beams, places, width, per_beam)
    fits = max(sizes.block_x, sizes.block_g) <= MOST_PLACES and num_beams * sizes.slots < 1 << 31
    if not fits or logits_BKC.dtype == torch.float64:
        return eager.beam_step(
            logits_BKC, score_BK, node_BK, child_start, child_code, width, normalise, per_beam
        )
    logits_BKC = logits_BKC if logits_BKC.stride(2) == 1 or num_codes == 1 else logits_BKC.contiguous()
    tree = tuple(x.contiguous() for x in (node_BK, child_start, child_code))
    with on(logits_BKC):
        key_RS, place_RS, count_R, most_RG, num_left_B = _extend(
            logits_BKC, score_BK.contiguous(), tree, sizes, normalise
        )
        left = _filter(key_RS, count_R, most_RG, num_left_B, num_beams, width, sizes)
        return _rank(tree, place_RS, num_left_B, left, num_beams, width, sizes)


def _sizes(num_beams: int, places: int, width: int, per_beam: int | None) -> Sizes:
    block_x = max(32, triton.next_power_of_2(places))
    groups = min(block_x, triton.next_power_of_2(-(-4 * width // num_beams)))
    slots = min(width, places, width if per_beam is None else per_beam)
    return Sizes(slots, groups, block_x, triton.next_power_of_2(num_beams * groups))


def _integers(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device=like.device)


def _extend(
    logits_BKC: Tensor, score_BK: Tensor, tree: tuple[Tensor, ...], sizes: Sizes, normalise: str
) -> tuple[Tensor, ...]:
    """Launch: each beam's best children, their places and number, and the maxima of their groups."""
    num_searches, num_beams, num_codes = logits_BKC.shape
    num_rows = num_searches * num_beams
    key_RS, place_RS = (_integers(logits_BKC, num_rows, sizes.slots) for _ in range(2))
    count_R, most_RG = _integers(logits_BKC, num_rows), _integers(logits_BKC, num_rows, sizes.groups)
    num_left_B = _integers(logits_BKC, num_searches)
    node_BK, child_start, child_code = tree
    extend_kernel[(num_rows,)](
        logits_BKC,
        score_BK,
        node_BK,
        child_start,
        child_code,
        key_RS,
        place_RS,
        count_R,
        most_RG,
        num_left_B,
        num_beams,
        child_start.shape[0] - 1,
        child_code.shape[0],
        SEARCH_STRIDE=logits_BKC.stride(0),
        BEAM_STRIDE=logits_BKC.stride(1),
        C=num_codes,
        BY_CHILDREN=normalise == "children",
        SLOTS=sizes.slots,
        GROUPS=sizes.groups,
        BLOCK_X=sizes.block_x,
        **normaliser(num_codes, sizes.block_x),
        **OPTIONS,
    )
    return key_RS, place_RS, count_R, most_RG, num_left_B


def _filter(
    key_RS: Tensor,
    count_R: Tensor,
    most_RG: Tensor,
    num_left_B: Tensor,
    num_beams: int,
    width: int,
    sizes: Sizes,
) -> tuple[Tensor, Tensor]:
    """Launch: the children of a search that can still be among its best; counts them in `num_left_B`."""
    left_key_RS, left_slot_RS = torch.empty_like(key_RS), torch.empty_like(key_RS)
    filter_kernel[(key_RS.shape[0],)](
        key_RS,
        count_R,
        most_RG,
        num_left_B,
        left_key_RS,
        left_slot_RS,
        num_beams,
        WIDTH=width,
        SLOTS=sizes.slots,
        GROUPS=sizes.groups,
        BLOCK_S=triton.next_power_of_2(sizes.slots),
        BLOCK_G=sizes.block_g,
        num_warps=4 if sizes.block_g <= 4096 else 8,
        **OPTIONS,
    )
    return left_key_RS, left_slot_RS


def _rank(
    tree: tuple[Tensor, ...],
    place_RS: Tensor,
    num_left_B: Tensor,
    left: tuple[Tensor, Tensor],
    num_beams: int,
    width: int,
    sizes: Sizes,
) -> tuple[Tensor, ...]:
    """Launch: put the children that are left in order."""
    num_searches = num_left_B.shape[0]
    score_BW = torch.empty(num_searches, width, dtype=torch.float32, device=num_left_B.device)
    parent_BW, code_BW, node_BW = (torch.empty_like(score_BW, dtype=torch.int64) for _ in range(3))
    programs = min(_PROGRAMS, triton.cdiv(max(width, min(2 * width, num_beams * sizes.slots)), _RANKED))
    rank_kernel[(programs, num_searches)](
        *tree,
        place_RS,
        num_left_B,
        *left,
        score_BW,
        parent_BW,
        code_BW,
        node_BW,
        num_beams,
        WIDTH=width,
        SLOTS=sizes.slots,
        BLOCK_R=_RANKED,
        BLOCK_J=128,
        num_warps=4,
        **OPTIONS,
    )
    return score_BW, parent_BW, code_BW, node_BW


def normaliser(num_codes: int, block_x: int) -> dict[str, int]:
    """Return the block of the normaliser and the warps: 16 numbers a thread, with which nothing spills."""
    block_c = min(4096, max(32, triton.next_power_of_2(num_codes)))
    return {"BLOCK_C": block_c, "num_warps": min(16, max(4, max(block_c, block_x) // 512))}


def _work(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
