"""The summary rows of summary_attention in PyTorch operators: every chunk apart, as batches of tiny products.

Shape letters: B batch, H query heads, G key and value heads, Q = H / G, T text rows, S summary rows, D head
width, P pairs of a key head and a chunk, R = Q m summary rows that share keys, N = k + m keys of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels.summary_attention.pattern import Forward, Gradients, Pattern, Rows


class _Chunks(NamedTuple):
    """Chunks of equal length: the text rows and summary rows [first, last) that they hold, and how many."""

    text: slice
    summary: slice
    number: int


def attend(text: Rows, summary: Rows, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Return the summary rows' outputs (B, H, S, D) and log-sum-exps (B, H, S)."""
    out_BHSD = torch.empty_like(summary.query_BHTD)
    kind = torch.float64 if out_BHSD.dtype == torch.float64 else torch.float32
    lse_BHS = out_BHSD.new_empty(out_BHSD.shape[:3], dtype=kind)
    for chunks in _chunks(text, summary, pattern):
        query_PRD = _queries(summary.query_BHTD, text, chunks, kind) * pattern.scale
        key_PND, value_PND = (
            _joined(*pair, chunks, kind) for pair in zip(text[1:], summary[1:], strict=True)
        )
        score_PRN = torch.baddbmm(_bias(query_PRD, key_PND, pattern), query_PRD, key_PND.transpose(1, 2))
        lse_PR1 = score_PRN.logsumexp(dim=2, keepdim=True)
        out_PRD = torch.bmm(score_PRN.sub_(lse_PR1).exp_(), value_PND)
        out_BHSD[:, :, chunks.summary] = _heads(out_PRD, out_BHSD, text)
        lse_BHS[:, :, chunks.summary] = _heads(lse_PR1, out_BHSD, text)[..., 0]
    return out_BHSD, lse_BHS


def gradient(grad_BHSD: Tensor, text: Rows, summary: Rows, forward: Forward, pattern: Pattern) -> Gradients:
    """Return the gradients of the summary rows' outputs, in fp32 at least; the text queries' is empty."""
    kind = torch.float64 if grad_BHSD.dtype == torch.float64 else torch.float32
    zeros = [
        [torch.zeros(x.shape, dtype=kind, device=x.device) for x in rows] for rows in (text[1:], summary)
    ]
    of_text, of_summary = Rows(grad_BHSD.new_empty(0), *zeros[0]), Rows(*zeros[1])
    for chunks in _chunks(text, summary, pattern):
        query_PRD = _queries(summary.query_BHTD, text, chunks, kind) * pattern.scale
        grad_PRD = _queries(grad_BHSD, text, chunks, kind)
        out_PRD = _queries(forward.summary_BHSD, text, chunks, kind)
        lse_PR1 = _queries(forward.summary_lse_BHS[..., None], text, chunks, kind)
        key_PND, value_PND = (
            _joined(*pair, chunks, kind) for pair in zip(text[1:], summary[1:], strict=True)
        )
        score_PRN = torch.baddbmm(_bias(query_PRD, key_PND, pattern), query_PRD, key_PND.transpose(1, 2))
        weight_PRN = score_PRN.sub_(lse_PR1).exp_()
        delta_PR1 = (grad_PRD * out_PRD).sum(dim=2, keepdim=True)
        grad_score_PRN = torch.bmm(grad_PRD, value_PND.transpose(1, 2)).sub_(delta_PR1).mul_(weight_PRN)
        grad_query_PRD = torch.bmm(grad_score_PRN, key_PND).mul_(pattern.scale)
        of_summary.query_BHTD[:, :, chunks.summary] = _heads(grad_query_PRD, grad_BHSD, text)
        of_keys = (
            torch.bmm(grad_score_PRN.transpose(1, 2), query_PRD),
            torch.bmm(weight_PRN.transpose(1, 2), grad_PRD),
        )
        for grad_PND, text_BGTD, summary_BGSD in zip(of_keys, of_text[1:], of_summary[1:], strict=True):
            grad_BGCND = grad_PND.view(*text_BGTD.shape[:2], chunks.number, -1, grad_PND.shape[2])
            length = grad_BGCND.shape[3] - pattern.summaries
            text_BGTD[:, :, chunks.text] = grad_BGCND[:, :, :, :length].flatten(2, 3)
            summary_BGSD[:, :, chunks.summary] = grad_BGCND[:, :, :, length:].flatten(2, 3)
    return Gradients(of_text, of_summary)


def _chunks(text: Rows, summary: Rows, pattern: Pattern) -> Iterator[_Chunks]:
    num_text, num_summaries = text.key_BGTD.shape[2], summary.query_BHTD.shape[2]
    whole = num_text // pattern.chunk
    text_end, summary_end = whole * pattern.chunk, whole * pattern.summaries
    if whole:
        yield _Chunks(slice(text_end), slice(summary_end), whole)
    if num_summaries > summary_end:
        yield _Chunks(slice(text_end, num_text), slice(summary_end, num_summaries), 1)


def _queries(rows_BHSD: Tensor, text: Rows, chunks: _Chunks, kind: torch.dtype) -> Tensor:
    """Return (P, R, D): the rows of one chunk and of the query heads that share a key head together."""
    num_sequences, _, _, width = rows_BHSD.shape
    rows = rows_BHSD[:, :, chunks.summary].to(kind)
    rows_BGQCmD = rows.reshape(
        num_sequences, text.key_BGTD.shape[1], -1, chunks.number, _length(rows, chunks), width
    )
    pairs = num_sequences * text.key_BGTD.shape[1] * chunks.number
    return rows_BGQCmD.transpose(2, 3).reshape(pairs, -1, width)


def _heads(rows_PRD: Tensor, like_BHSD: Tensor, text: Rows) -> Tensor:
    """Undo `_queries`."""
    num_sequences, num_heads = like_BHSD.shape[:2]
    num_groups = text.key_BGTD.shape[1]
    group, width = num_heads // num_groups, rows_PRD.shape[2]
    number = len(rows_PRD) // (num_sequences * num_groups)
    rows = rows_PRD.view(num_sequences, num_groups, number, group, -1, width).transpose(2, 3)
    return rows.reshape(num_sequences, num_heads, -1, width)


def _joined(text_BGTD: Tensor, summary_BGSD: Tensor, chunks: _Chunks, kind: torch.dtype) -> Tensor:
    """Return (P, N, D): each chunk's text rows, then its summary rows."""
    both = (text_BGTD[:, :, chunks.text], summary_BGSD[:, :, chunks.summary])
    of_chunk = (x.reshape(*x.shape[:2], chunks.number, -1, x.shape[3]) for x in both)
    return torch.cat(tuple(of_chunk), dim=3).to(kind).flatten(0, 2)


def _length(rows: Tensor, chunks: _Chunks) -> int:
    return rows.shape[2] // chunks.number


def _bias(query_PRD: Tensor, key_PND: Tensor, pattern: Pattern) -> Tensor:
    """Return (1, R, N): 0 where a summary row reads, -inf at the later summaries of its chunk."""
    num_summaries, num_keys = pattern.summaries, key_PND.shape[1]
    bias_mN = key_PND.new_zeros(num_summaries, num_keys)
    later_mm = torch.ones(num_summaries, num_summaries, dtype=torch.bool, device=key_PND.device).triu(1)
    bias_mN[:, num_keys - num_summaries :].masked_fill_(later_mm, -torch.inf)
    return bias_mN.repeat(query_PRD.shape[1] // num_summaries, 1)[None]
