"""summary_attention of short sequences on a CPU: all rows of all heads in one masked call of flash attention.

Shape letters: B batch, H query heads, G key and value heads, T text rows, S summary rows, D head width,
N = T + S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feedworks_kernels.summary_attention.pattern import Forward, Gradients, Pattern, Rows
from feedworks_kernels.summary_attention.reference import kinds, mask

# The work grows with N^2; a pass over blocks takes some 100 us per head more.
_LONGEST = 192


def fits(text: Rows, summary: Rows) -> bool:
    """Tell whether the sequences are short enough for one masked call."""
    query = text.query_BHTD
    return query.device.type == "cpu" and query.shape[2] + summary.query_BHTD.shape[2] <= _LONGEST


def summary_attention(text: Rows, summary: Rows, pattern: Pattern) -> Forward:
    """As `feedworks_kernels.summary_attention`."""
    out_BHND, lse_BHN = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_joint(text, summary), 0.0, False, attn_mask=_bias(text, summary, pattern), scale=pattern.scale
    )
    num_text = text.query_BHTD.shape[2]
    outs = (x.to(text.query_BHTD.dtype) for x in _split(out_BHND, num_text))
    return Forward(
        *outs, *(x.clone(memory_format=torch.contiguous_format) for x in _split(lse_BHN, num_text))
    )


def gradient(
    grad_text_BHTD: Tensor,
    grad_summary_BHSD: Tensor,
    text: Rows,
    summary: Rows,
    forward: Forward,
    pattern: Pattern,
) -> Gradients:
    """As `eager.gradient`."""
    joint = _joint(text, summary)
    pairs = ((grad_text_BHTD, grad_summary_BHSD), forward[:2], forward[2:])
    kind = joint.query_BHTD.dtype
    grad_BHND, out_BHND, lse_BHN = (torch.cat(pair, dim=2).to(kind) for pair in pairs)
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_BHND,
        *joint,
        out_BHND,
        lse_BHN,
        0.0,
        False,
        attn_mask=_bias(text, summary, pattern),
        scale=pattern.scale,
    )
    num_groups, num_text = text.key_BGTD.shape[1], text.query_BHTD.shape[2]
    query_BHND = found[0]
    key_BGND, value_BGND = (x.reshape(len(x), num_groups, -1, *x.shape[2:]).sum(dim=2) for x in found[1:])
    dtype = text.query_BHTD.dtype
    grads = [_split(x.to(dtype), num_text) for x in (query_BHND, key_BGND, value_BGND)]
    return Gradients(Rows(*(pair[0] for pair in grads)), Rows(*(pair[1] for pair in grads)))


def _joint(text: Rows, summary: Rows) -> Rows:
    """Return text and summary rows together in fp32 at least, with a key and a value for each query head.

    bf16 products take as long here, and gradients rounded before the sum over a key's heads err more.
    """
    kind = torch.float64 if text.query_BHTD.dtype == torch.float64 else torch.float32
    query_BHND, *shared = (torch.cat(pair, dim=2).to(kind) for pair in zip(text, summary, strict=True))
    group = query_BHND.shape[1] // shared[0].shape[1]
    return Rows(query_BHND, *(x.repeat_interleave(group, dim=1) for x in shared))


def _bias(text: Rows, summary: Rows, pattern: Pattern) -> Tensor:
    mask_BNN = mask(pattern, *kinds(pattern, text.query_BHTD.shape[2], summary.query_BHTD.shape[2]))
    kind = torch.float64 if text.query_BHTD.dtype == torch.float64 else torch.float32
    zeros = torch.zeros(mask_BNN.shape, dtype=kind)
    return zeros.masked_fill_(~mask_BNN, -torch.inf)[:, None]


def _split(rows: Tensor, num_text: int) -> tuple[Tensor, Tensor]:
    return rows[:, :, :num_text], rows[:, :, num_text:]
