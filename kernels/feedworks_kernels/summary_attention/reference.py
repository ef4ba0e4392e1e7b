"""summary_attention by its definition, twice. The other forms are tested on it.

`summary_attention` is the de-interleaved definition: text and summary rows apart. `interleaved` is the one of
the paper: each chunk's summaries follow its text in one sequence, under one mask. They agree.

Shape letters: B batch, H query heads, G key and value heads, T text rows, S summary rows, D head width, C
chunks, N = T + S rows of the interleaved sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feedworks_kernels.summary_attention.pattern import Forward, Gradients, Pattern, Rows


def summary_attention(text: Rows, summary: Rows, pattern: Pattern) -> Forward:
    """One softmax per row over all that it reads. As `feedworks_kernels.summary_attention`."""
    num_text, num_summaries = text.query_BHTD.shape[2], summary.query_BHTD.shape[2]
    mask_BNN = mask(pattern, *kinds(pattern, num_text, num_summaries, text.query_BHTD.device))
    joint = Rows(*(torch.cat(pair, dim=2) for pair in zip(text, summary, strict=True)))
    out_BHND, lse_BHN = _attend(joint, mask_BNN, pattern.scale)
    return Forward(
        out_BHND[:, :, :num_text].clone(),
        out_BHND[:, :, num_text:].clone(),
        lse_BHN[:, :, :num_text].clone(),
        lse_BHN[:, :, num_text:].clone(),
    )


def interleaved(text: Rows, summary: Rows, pattern: Pattern) -> Forward:
    """The same on the sequence text of chunk 0, summaries of chunk 0, text of chunk 1, ..."""
    num_text, num_summaries = text.query_BHTD.shape[2], summary.query_BHTD.shape[2]
    chunk_N, part_N = kinds(pattern, num_text, num_summaries, text.query_BHTD.device)
    order_N = torch.argsort(chunk_N * (pattern.chunk + pattern.summaries) + part_N)
    joint = Rows(*(torch.cat(pair, dim=2)[:, :, order_N] for pair in zip(text, summary, strict=True)))
    out_BHND, lse_BHN = _attend(joint, mask(pattern, chunk_N[order_N], part_N[order_N]), pattern.scale)
    place_N = torch.argsort(order_N)
    out_BHND, lse_BHN = out_BHND[:, :, place_N], lse_BHN[:, :, place_N]
    return Forward(
        out_BHND[:, :, :num_text],
        out_BHND[:, :, num_text:],
        lse_BHN[:, :, :num_text],
        lse_BHN[:, :, num_text:],
    )


def gradient(
    grad_text_BHTD: Tensor,
    grad_summary_BHSD: Tensor,
    text: Rows,
    summary: Rows,
    forward: Forward,
    pattern: Pattern,
) -> Gradients:
    """Differentiate the definition, weight by weight; `forward` is not looked at."""
    del forward
    num_text, num_summaries = text.query_BHTD.shape[2], summary.query_BHTD.shape[2]
    joint = Rows(*(torch.cat(pair, dim=2) for pair in zip(text, summary, strict=True)))
    mask_BNN = mask(pattern, *kinds(pattern, num_text, num_summaries, joint.query_BHTD.device))
    query_BHND, key_BHND, value_BHND = _whole(joint)
    weight_BHNN = torch.softmax(_scores(query_BHND, key_BHND, mask_BNN, pattern.scale), dim=-1)
    grad_BHND = torch.cat([grad_text_BHTD, grad_summary_BHSD], dim=2).to(weight_BHNN.dtype)
    grad_value_BHND = weight_BHNN.transpose(2, 3) @ grad_BHND
    grad_weight_BHNN = grad_BHND @ value_BHND.transpose(2, 3)
    mean_BHN1 = (weight_BHNN * grad_weight_BHNN).sum(dim=-1, keepdim=True)
    grad_score_BHNN = weight_BHNN * (grad_weight_BHNN - mean_BHN1) * pattern.scale
    grad_query_BHND = grad_score_BHNN @ key_BHND
    grad_key_BHND = grad_score_BHNN.transpose(2, 3) @ query_BHND
    grads = []
    for grad, operand in zip((grad_query_BHND, grad_key_BHND, grad_value_BHND), joint, strict=True):
        # Heads that share a key add up.
        of_group = grad.view(len(grad), operand.shape[1], -1, *grad.shape[2:]).sum(dim=2)
        whole = of_group.to(operand.dtype)
        grads.append((whole[:, :, :num_text], whole[:, :, num_text:]))
    return Gradients(Rows(*(pair[0] for pair in grads)), Rows(*(pair[1] for pair in grads)))


def kinds(
    pattern: Pattern, num_text: int, num_summaries: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return each row's chunk and its place in it, T text rows first; places k, k + 1 .. are summaries."""
    text_T = torch.arange(num_text, device=device)
    summary_S = torch.arange(num_summaries, device=device)
    chunk_N = torch.cat([text_T // pattern.chunk, summary_S // pattern.summaries])
    part_N = torch.cat([text_T % pattern.chunk, pattern.chunk + summary_S % pattern.summaries])
    return chunk_N, part_N


def mask(pattern: Pattern, chunk_N: Tensor, part_N: Tensor) -> Tensor:
    """Return who reads whom, bool (B or 1, N, N): rows read columns."""
    reader_N1, chunk_1N = chunk_N[:, None], chunk_N[None]
    is_summary_N = part_N >= pattern.chunk
    reader_is_summary_N1, is_summary_1N = is_summary_N[:, None], is_summary_N[None]
    not_later_NN = (reader_N1 > chunk_1N) | ((reader_N1 == chunk_1N) & (part_N[:, None] >= part_N[None]))
    in_window_NN = reader_N1 - chunk_1N <= pattern.window
    by_summary_NN = reader_N1 == chunk_1N
    by_text_NN = torch.where(is_summary_1N, ~in_window_NN, in_window_NN)
    mask_BNN = (not_later_NN & torch.where(reader_is_summary_N1, by_summary_NN, by_text_NN))[None]
    if pattern.first_chunk_BC is not None and chunk_N.numel():
        mask_BNN = mask_BNN & (chunk_1N >= pattern.first_chunk_BC[:, chunk_N][:, :, None])
    return mask_BNN


def _attend(rows: Rows, mask_BNN: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    query_BHND, key_BHND, value_BHND = _whole(rows)
    score_BHNN = _scores(query_BHND, key_BHND, mask_BNN, scale)
    out_BHND = torch.softmax(score_BHNN, dim=-1) @ value_BHND
    return out_BHND.to(rows.query_BHTD.dtype), torch.logsumexp(score_BHNN, dim=-1)


def _whole(rows: Rows) -> Rows:
    """Return the rows in fp32 at least, with a key and a value for each query head."""
    whole = torch.float64 if rows.query_BHTD.dtype == torch.float64 else torch.float32
    group = rows.query_BHTD.shape[1] // rows.key_BGTD.shape[1]
    query_BHND, key_BGND, value_BGND = (x.to(whole) for x in rows)
    return Rows(query_BHND, *(x.repeat_interleave(group, dim=1) for x in (key_BGND, value_BGND)))


def _scores(query_BHND: Tensor, key_BHND: Tensor, mask_BNN: Tensor, scale: float) -> Tensor:
    score_BHNN = query_BHND @ key_BHND.transpose(2, 3) * scale
    return score_BHNN.masked_fill(~mask_BNN[:, None], -torch.inf)
