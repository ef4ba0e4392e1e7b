"""beam_step in Triton: three launches whose sizes the host knows beforehand, so a CUDA graph can hold them.

Shape letters: B searches, K live beams of each, C codes, W beams kept, S slots of a beam (its best children).
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from feedworks_kernels.beam_step import eager
from feedworks_kernels.beam_step.beams_kernel import extend_kernel, filter_kernel, rank_kernel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What the kernels hand to the compiler: Triton warns where fusing a * b + c is left to its default.
OPTIONS = {"enable_fp_fusion": True}
# One program holds the children of a beam, or the group maxima of a search, in registers.
MOST_PLACES = 1 << 13
_PROGRAMS = 264  # two for every multiprocessor
_RANKED = 32  # children that one program ranks


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
    num_children = child_code.shape[0]
    # A node's codes are distinct, so that neither number of children nor of codes can be exceeded.
    places = min(num_codes, num_children)
    slots = min(width, places, width if per_beam is None else per_beam)
    if not num_searches * num_beams * places:
        dead_BW = torch.full((num_searches, width), -torch.inf, device=logits_BKC.device)
        return dead_BW.to(_work(logits_BKC)), *(
            torch.zeros_like(dead_BW, dtype=torch.int64) for _ in range(3)
        )
    block_x = max(32, triton.next_power_of_2(places))
    groups = min(block_x, triton.next_power_of_2(-(-4 * width // num_beams)))
    block_g = triton.next_power_of_2(num_beams * groups)
    fits = max(block_x, block_g) <= MOST_PLACES and num_beams * slots < 1 << 31
    if not fits or logits_BKC.dtype == torch.float64:
        return eager.beam_step(
            logits_BKC, score_BK, node_BK, child_start, child_code, width, normalise, per_beam
        )
    logits_BKC = logits_BKC if logits_BKC.stride(2) == 1 or num_codes == 1 else logits_BKC.contiguous()
    score_BK, node_BK = score_BK.contiguous(), node_BK.contiguous()
    child_start, child_code = child_start.contiguous(), child_code.contiguous()
    num_rows = num_searches * num_beams

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=logits_BKC.device)

    key_RS, place_RS, left_key_RS, left_slot_RS = (integers(num_rows, slots) for _ in range(4))
    count_R, most_RG, num_left_B = integers(num_rows), integers(num_rows, groups), integers(num_searches)
    score_BW = torch.empty(num_searches, width, dtype=torch.float32, device=logits_BKC.device)
    parent_BW, code_BW, node_BW = (torch.empty_like(score_BW, dtype=torch.int64) for _ in range(3))
    with on(logits_BKC):
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
            num_children,
            SEARCH_STRIDE=logits_BKC.stride(0),
            BEAM_STRIDE=logits_BKC.stride(1),
            C=num_codes,
            BY_CHILDREN=normalise == "children",
            SLOTS=slots,
            GROUPS=groups,
            BLOCK_X=block_x,
            **normaliser(num_codes, block_x),
            **OPTIONS,
        )
        filter_kernel[(num_rows,)](
            key_RS,
            count_R,
            most_RG,
            num_left_B,
            left_key_RS,
            left_slot_RS,
            num_beams,
            WIDTH=width,
            SLOTS=slots,
            GROUPS=groups,
            BLOCK_S=triton.next_power_of_2(slots),
            BLOCK_G=block_g,
            num_warps=4 if block_g <= 4096 else 8,
            **OPTIONS,
        )
        programs = min(_PROGRAMS, triton.cdiv(max(width, min(2 * width, num_beams * slots)), _RANKED))
        rank_kernel[(programs, num_searches)](
            node_BK,
            child_start,
            child_code,
            place_RS,
            num_left_B,
            left_key_RS,
            left_slot_RS,
            score_BW,
            parent_BW,
            code_BW,
            node_BW,
            num_beams,
            WIDTH=width,
            SLOTS=slots,
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


def on(x: Tensor) -> AbstractContextManager[object]:
    """Return a block in which `x`'s device is the current one.

    Raises:
        RuntimeError: `x` lies on a device that has no Triton.
    """
    if x.is_cuda:
        return torch.cuda.device(x.device)
    if INTERPRETED:
        return nullcontext()
    raise RuntimeError(f"the Triton kernel cannot run on {x.device}: unset FEEDWORKS_KERNELS or move to CUDA")
