"""summary_attention in PyTorch operators: no T x T array, on the CPU faster than the dense operator.

The text rows go head by head, document by document, in blocks (`eager_text`). Where T is small, all rows of
all heads go through one masked call of torch's flash attention. Summary rows are a batch of tiny products.

Shape letters: B batch, H query heads, G key and value heads, Q = H / G, T text rows, S summary rows, D head
width, C chunks, m summaries of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels.summary_attention import eager_short, eager_summary, eager_threads
from feedworks_kernels.summary_attention.eager_text import (
    FROM_THE_FIRST,
    LOG2_E,
    Head,
    HeadGradient,
    Keys,
    Start,
)
from feedworks_kernels.summary_attention.pattern import Forward, Gradients, Pattern, Rows

# A sum of weights without a maximum within these is as exact as one with it: weights that vanish in fp32
# would not have counted, and products with values stay finite.
_SAFE_LOG2 = 60.0
# Query heads of one key head that go together: their blocks have few rows each, and fill a product.
_HEADS = 8


def summary_attention(text: Rows, summary: Rows, pattern: Pattern) -> Forward:
    """As `feedworks_kernels.summary_attention`."""
    if eager_short.fits(text, summary):
        return eager_short.summary_attention(text, summary, pattern)
    text_BHTD, text_lse_BHT = attend_text(text, summary, pattern)
    summary_BHSD, summary_lse_BHS = eager_summary.attend(text, summary, pattern)
    return Forward(text_BHTD, summary_BHSD, text_lse_BHT, summary_lse_BHS)


def attend_text(
    text: Rows, summary: Rows, pattern: Pattern, start: Start = FROM_THE_FIRST
) -> tuple[Tensor, Tensor]:
    """Return the text rows' outputs (B, H, T, D) and log-sum-exps (B, H, T).

    Args:
        text: T queries, and keys and values of the rows that they read.
        summary: queries are not looked at.
        pattern: one document for each sequence, if `start` is given.
        start: rows that the first query and the first key are.
    """
    text_BHTD = torch.empty_like(text.query_BHTD)
    lse_BHT = text_BHTD.new_empty(text_BHTD.shape[:3], dtype=whole(text_BHTD))

    def attend(task: _Task) -> None:
        head = _head(text, summary, pattern, task, start)
        out_QTD, lse_QT = text_BHTD[task.place], lse_BHT[task.place]
        for first, last in list(head.blocks())[task.share]:
            for shifted in (False, True):
                out_QRD, lse_QR = head.attend(first, last, shifted)
                if bool((lse_QR.abs() <= _SAFE_LOG2).all()):
                    break
            rows = slice(first - start.query, last - start.query)
            out_QTD[:, rows], lse_QT[:, rows] = out_QRD, lse_QR

    workers = eager_threads.num_workers(text_BHTD.device)
    for _ in eager_threads.run(attend, _tasks(text, pattern, workers), workers):
        pass
    return text_BHTD, lse_BHT.div_(LOG2_E)


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

    def differentiate(task: _Task) -> tuple[_Task, HeadGradient]:
        head = _head(text, summary, pattern, task)
        grad_QTD = grad_text_BHTD[task.place].to(kind)
        delta_QT = (grad_QTD * forward.text_BHTD[task.place].to(kind)).sum(dim=2)
        lse_QT = forward.text_lse_BHT[task.place] * LOG2_E
        sums = HeadGradient(
            *(Keys(*(x.new_zeros(x.shape[::-1]) for x in keys)) for keys in (head.text, head.summary))
        )
        for start, stop in list(head.blocks())[task.share]:
            found = head.differentiate(start, stop, grad_QTD, delta_QT, lse_QT, sums)
            query_BHTD[task.place][:, start:stop] = found.mul_(pattern.scale)
        return task, sums

    workers = eager_threads.num_workers(query_BHTD.device)
    for task, sums in eager_threads.run(differentiate, _tasks(text, pattern, workers), workers):
        for rows, keys, shared in zip(grads, sums, task.shared, strict=True):
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


class _Task(NamedTuple):
    """Some blocks of some query heads of one key head, in one document.

    `place` is the index into (B, H, T); `shared` those of text and of summaries into (B, G, T) and (B, G, S);
    `share` picks blocks.
    """

    place: tuple[int, slice, slice]
    shared: tuple[tuple[int, int, slice], tuple[int, int, slice]]
    share: slice


def _tasks(text: Rows, pattern: Pattern, workers: int) -> list[_Task]:
    num_sequences, num_groups = text.key_BGTD.shape[:2]
    group = text.query_BHTD.shape[1] // num_groups
    tasks = []
    for sequence in range(num_sequences):
        for rows, own in _documents(pattern, sequence):
            for number in range(num_groups):
                shared = ((sequence, number, rows), (sequence, number, own))
                end = (number + 1) * group
                for begin in range(number * group, end, _HEADS):
                    heads = slice(begin, min(begin + _HEADS, end))
                    tasks.append(_Task((sequence, heads, rows), shared, slice(None)))
    if workers == 1 or len(tasks) >= 2 * workers:
        return tasks
    # Later blocks read more: the blocks are dealt out in turns.
    return [task._replace(share=slice(turn, None, workers)) for task in tasks for turn in range(workers)]


def _head(text: Rows, summary: Rows, pattern: Pattern, task: _Task, start: Start = FROM_THE_FIRST) -> Head:
    kind = whole(text.query_BHTD)
    text_keys, summary_keys = (
        Keys(*(x[at].to(kind).contiguous() for x in source[1:]))
        for source, at in zip((text, summary), task.shared, strict=True)
    )
    query_QTD = text.query_BHTD[task.place].to(kind) * (pattern.scale * LOG2_E)
    return Head(query_QTD, text_keys, summary_keys, pattern, start)


def _documents(pattern: Pattern, sequence: int) -> list[tuple[slice, slice]]:
    """Return the text rows and the summary rows of each document of a sequence."""
    if pattern.first_chunk_BC is None:
        return [(slice(None), slice(None))]
    first = sorted(set(pattern.first_chunk_BC[sequence].tolist()))
    return [
        (
            slice(begin * pattern.chunk, end and end * pattern.chunk),
            slice(begin * pattern.summaries, end and end * pattern.summaries),
        )
        for begin, end in zip(first, [*first[1:], None], strict=True)
    ]
