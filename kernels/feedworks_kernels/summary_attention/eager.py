"""summary_attention in PyTorch operators: no T x T array, on the CPU faster than the dense operator.

The text rows go head by head, document by document, in blocks (`eager_text`). Where T is small, all rows of
all heads go through one masked call of torch's flash attention. Summary rows are a batch of tiny products.

Shape letters: B batch, H query heads, G key and value heads, Q = H / G, T text rows, S summary rows, D head
width, C chunks, m summaries of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels.summary_attention import eager_short, eager_summary
from feedworks_kernels.summary_attention.eager_text import LOG2_E, Head, HeadGradient, Keys
from feedworks_kernels.summary_attention.pattern import Forward, Gradients, Pattern, Rows

# A sum of weights without a maximum within these is as exact as one with it: weights that vanish in fp32
# would not have counted, and products with values stay finite.
_SAFE_LOG2 = 60.0


def summary_attention(text: Rows, summary: Rows, pattern: Pattern) -> Forward:
    """As `feedworks_kernels.summary_attention`."""
    if eager_short.fits(text, summary):
        return eager_short.summary_attention(text, summary, pattern)
    text_BHTD = torch.empty_like(text.query_BHTD)
    lse_BHT = text_BHTD.new_empty(text_BHTD.shape[:3], dtype=whole(text_BHTD))
    for part in _parts(text, summary, pattern):
        out_QTD, lse_QT = text_BHTD[part.place], lse_BHT[part.place]
        for shifted in (False, True):
            for start, stop in part.head.blocks():
                out, lse_QT[:, start:stop] = part.head.attend(start, stop, shifted)
                out_QTD[:, start:stop] = out
            if bool((lse_QT.abs() <= _SAFE_LOG2).all()):
                break
    summary_BHSD, summary_lse_BHS = eager_summary.attend(text, summary, pattern)
    return Forward(text_BHTD, summary_BHSD, lse_BHT.div_(LOG2_E), summary_lse_BHS)


def gradient(
    grad_text_BHTD: Tensor,
    grad_summary_BHSD: Tensor,
    text: Rows,
    summary: Rows,
    forward: Forward,
    pattern: Pattern,
) -> Gradients:
    """Compute the gradients; the weights are computed again from the log-sum-exps."""
    if eager_short.fits(text, summary):
        return eager_short.gradient(grad_text_BHTD, grad_summary_BHSD, text, summary, forward, pattern)
    kind = whole(grad_text_BHTD)
    grads = eager_summary.gradient(grad_summary_BHSD, text, summary, forward, pattern)
    query_BHTD = torch.empty_like(text.query_BHTD, dtype=kind)
    for part in _parts(text, summary, pattern):
        place, head = part.place, part.head
        grad_QTD = grad_text_BHTD[place].to(kind)
        delta_QT = (grad_QTD * forward.text_BHTD[place].to(kind)).sum(dim=2)
        lse_QT = forward.text_lse_BHT[place] * LOG2_E
        sums = HeadGradient(
            *(Keys(*(x.new_zeros(x.shape[::-1]) for x in keys)) for keys in (head.text, head.summary))
        )
        for start, stop in head.blocks():
            found = head.differentiate(start, stop, grad_QTD, delta_QT, lse_QT, sums)
            query_BHTD[place][:, start:stop] = found.mul_(pattern.scale)
        for rows, keys, shared in zip(grads, sums, part.shared, strict=True):
            rows.key_BGTD[shared] += keys.key_TD.T / LOG2_E
            rows.value_BGTD[shared] += keys.value_TD.T
    text_grads = grads.text._replace(query_BHTD=query_BHTD)
    return Gradients(
        *(
            Rows(*(x.to(like.dtype) for x, like in zip(found, rows, strict=True)))
            for found, rows in ((text_grads, text), (grads.summary, summary))
        )
    )


def whole(tensor: Tensor) -> torch.dtype:
    """Return the type that sums are kept in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class _Part(NamedTuple):
    """One key head of one document: indices into (B, H, T) and, for text and summaries, into (B, G, T)."""

    place: tuple[int, slice, slice]
    shared: tuple[tuple[int, int, slice], tuple[int, int, slice]]
    head: Head


def _parts(text: Rows, summary: Rows, pattern: Pattern) -> Iterator[_Part]:
    num_sequences, num_groups, num_text, _ = text.key_BGTD.shape
    group = text.query_BHTD.shape[1] // num_groups
    kind = whole(text.query_BHTD)
    for sequence in range(num_sequences):
        for first, last in documents(pattern, sequence, num_text):
            rows = slice(first * pattern.chunk, min(num_text, last * pattern.chunk))
            own = slice(first * pattern.summaries, last * pattern.summaries)
            for shared_head in range(num_groups):
                heads = slice(shared_head * group, (shared_head + 1) * group)
                shared = ((sequence, shared_head, rows), (sequence, shared_head, own))
                own_text, own_summary = (
                    Keys(*(x[at].to(kind).contiguous() for x in source[1:]))
                    for source, at in zip((text, summary), shared, strict=True)
                )
                query_QTD = text.query_BHTD[sequence, heads, rows].to(kind) * (pattern.scale * LOG2_E)
                head = Head(query_QTD, own_text, own_summary, pattern)
                yield _Part((sequence, heads, rows), shared, head)


def documents(pattern: Pattern, sequence: int, num_text: int) -> list[tuple[int, int]]:
    """Return the chunks [first, last) of each document of a sequence."""
    num_chunks = pattern.num_chunks(num_text)
    if pattern.first_chunk_BC is None:
        return [(0, num_chunks)]
    first = sorted(set(pattern.first_chunk_BC[sequence].tolist()))
    return list(zip(first, [*first[1:], num_chunks], strict=True))
