"""One step of beam search over a trie. Maths, costs and measurements: README.md in this folder.

Shape letters: B searches, K live beams of each, C codes of this level, W beams kept.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from feedworks_kernels.beam_step import registration

Normalise = Literal["codebook", "children"]
_NORMALISE = get_args(Normalise)


class BeamStep(NamedTuple):
    """The beams kept, best first. A place that no child fills has score -inf and parent, code and node 0."""

    score_BW: Tensor
    parent_BW: Tensor
    code_BW: Tensor
    node_BW: Tensor


def beam_step(
    logits_BKC: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    child_start: Tensor,
    child_code: Tensor,
    width: int,
    normalise: Normalise = "codebook",
    *,
    per_beam: int | None = None,
) -> BeamStep:
    """Extend every beam by each child of its trie node and keep the best `width` of each search.

    The score of a child is the beam's score plus the log-probability of the child's code. Order: score
    descending, then parent ascending, then code ascending. The children of node v are the positions
    child_start[v] .. child_start[v + 1] - 1 of `child_code`, and that position is the child's node number on
    the next level. No gradient flows. While torch exports or compiles, this is one node,
    `feedworks::beam_step`; whoever loads such a program imports `feedworks_kernels` before.

    Args:
        logits_BKC: float, finite or -inf (with "children" only the children's logits are read). fp64 is
            computed in fp64, any other float in fp32.
        score_BK: log-probability of each beam; -inf marks an empty beam, whose other entries are not read.
        node_BK: int32 or int64 node numbers on this level, 0 for the root.
        child_start: int32 or int64 (num_nodes + 1,), not falling.
        child_code: int32 or int64 (num_children,), rising within a node, each in [0, C).
        width: number of beams to keep, >= 1.
        normalise: "codebook": softmax over all C codes, as the generator was trained. "children": softmax
            over the node's children only, so that the probabilities of all stored paths add up to 1.
        per_beam: most children that one beam may place, its best in the same order; None: any number.

    Returns:
        BeamStep with score in fp32 (fp64 for fp64 logits) and parent, code, node in int64.

    Raises:
        ValueError: shapes, types, devices, `width` or `per_beam` do not fit; or a live beam has a node or
            code that does not exist, a NaN as its score, or a NaN or +inf among the logits that are read. The
            CUDA kernel, where looking costs a wait, takes no child of such a node or code, and gives NaN as
            the best score of the children of such scores and logits.

    Source: constrained beam search of arXiv 2604.25787 section 3; trie as sparse rows, arXiv 2602.22647.
    """
    _check(logits_BKC, score_BK, node_BK, child_start, child_code)
    if not _is_whole(width) or width < 1:
        raise ValueError(f"width: expected at least 1, got {width!r}")
    if per_beam is not None and (not _is_whole(per_beam) or per_beam < 1):
        raise ValueError(f"per_beam: expected at least 1 or None, got {per_beam!r}")
    if normalise not in _NORMALISE:
        raise ValueError(f"normalise: expected one of {_NORMALISE}, got {normalise!r}")
    form = registration.beam_step if torch.compiler.is_compiling() else registration.extend
    with torch.no_grad():
        return BeamStep(
            *form(logits_BKC, score_BK, node_BK, child_start, child_code, width, normalise, per_beam)
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def _check(
    logits_BKC: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    child_start: Tensor,
    child_code: Tensor,
) -> None:
    if logits_BKC.ndim != 3 or not logits_BKC.is_floating_point() or not logits_BKC.shape[2]:
        raise ValueError(
            f"logits: expected float (B, K, C) with C >= 1, got {logits_BKC.dtype} {tuple(logits_BKC.shape)}"
        )
    beams = tuple(logits_BKC.shape[:2])
    for name, tensor, is_float in (("score", score_BK, True), ("node", node_BK, False)):
        fits = tensor.is_floating_point() if is_float else tensor.dtype in (torch.int32, torch.int64)
        if tuple(tensor.shape) != beams or not fits:
            kind = "float" if is_float else "int32 or int64"
            raise ValueError(f"{name}: expected {kind} {beams}, got {tensor.dtype} {tuple(tensor.shape)}")
    for name, tensor in (("child_start", child_start), ("child_code", child_code)):
        if tensor.ndim != 1 or tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"{name}: expected int32 or int64 (n,), got {tensor.dtype} {tuple(tensor.shape)}"
            )
    if child_start.shape[0] < 2:
        raise ValueError(f"child_start: expected at least 2 entries (one node), got {child_start.shape[0]}")
    others = score_BK.device, node_BK.device, child_start.device, child_code.device
    if others != (logits_BKC.device,) * 4:
        devices = sorted({str(device) for device in (logits_BKC.device, *others)})
        raise ValueError(f"all tensors must lie on one device, got {devices}")
