"""beam_step as an operator of torch, which export and compile keep as one node. It has no gradient.

Shape letters: B searches, K live beams of each, C codes of this level, W beams kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from feedworks_kernels._dispatch import implementation


def extend(
    logits_BKC: Tensor,
    score_BK: Tensor,
    node_BK: Tensor,
    child_start: Tensor,
    child_code: Tensor,
    width: int,
    normalise: str,
    per_beam: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the form that belongs to the device. Arguments and result as `feedworks_kernels.beam_step`."""
    run = implementation("beam_step", logits_BKC.device)
    score_BW, parent_BW, code_BW, node_BW = run(
        logits_BKC, score_BK, node_BK, child_start, child_code, width, normalise, per_beam
    )
    return score_BW, parent_BW, code_BW, node_BW


def _extend(
    logits: Tensor,
    score: Tensor,
    node: Tensor,
    child_start: Tensor,
    child_code: Tensor,
    width: int,
    normalise: str,
    per_beam: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with the strides that tracing promises; a caller who needs none saves four copies."""
    found = extend(logits, score, node, child_start, child_code, width, normalise, per_beam)
    score_BW, parent_BW, code_BW, node_BW = (column.contiguous() for column in found)
    return score_BW, parent_BW, code_BW, node_BW


beam_step = library.custom_op(
    "feedworks::beam_step",
    _extend,
    mutates_args=(),
    schema="(Tensor logits, Tensor score, Tensor node, Tensor child_start, Tensor child_code, SymInt width, "
    "str normalise, SymInt? per_beam) -> (Tensor, Tensor, Tensor, Tensor)",
)


@beam_step.register_fake
def _(logits, score, node, child_start, child_code, width, normalise, per_beam):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    shape = logits.shape[0], width
    work = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(shape, dtype=work), *(node.new_empty(shape, dtype=torch.int64) for _ in range(3))
