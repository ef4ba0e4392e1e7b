"""summary_attention in float64 for a sample of its rows: all of a short sequence, some rows of a long one.

A long one's gradients are compared at the sampled rows' queries and the last chunk's keys and values: whoever
reads those is in the sample.

Shape letters: B batch, H query heads, G key and value heads, T text rows, S summary rows, D head width, N all
T + S rows, R rows of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.attention_peers import Inputs
from feedworks_kernels.summary_attention.reference import kinds

# Up to this many text rows everything is compared.
_SHORT = 1024
_SAMPLED = 48


class Sample(NamedTuple):
    """Which rows are compared, text rows counted before summary rows, and which keys' gradients."""

    row_R: Tensor
    key_R: Tensor


def sample(inputs: Inputs) -> Sample:
    """Choose all rows, or the first and last chunk's and some between."""
    num_text, num_summaries = inputs.text.query_BHTD.shape[2], inputs.summary.query_BHTD.shape[2]
    device = inputs.text.query_BHTD.device
    every = torch.arange(num_text + num_summaries, device=device)
    if num_text <= _SHORT:
        return Sample(every, every)
    chunk_N, _ = kinds(inputs.pattern, num_text, num_summaries, device)
    last = every[chunk_N == chunk_N.max()]
    first = every[chunk_N == 0]
    drawn = torch.randint(0, len(every), (_SAMPLED,), generator=torch.Generator().manual_seed(0)).to(device)
    return Sample(torch.unique(torch.cat([first, drawn, last]), sorted=True), last)


def kept(result: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
    """Cut a result (two outputs, or six gradients) down to the sample."""
    row_R, key_R = sample(inputs)
    num_text, found = inputs.text.query_BHTD.shape[2], []
    half = len(result) // 2
    for number, part in enumerate(result):
        chosen = row_R if number % half == 0 else key_R
        is_text = number < half
        place = chosen[chosen < num_text] if is_text else chosen[chosen >= num_text] - num_text
        found.append(part.index_select(2, place))
    return found


def exact_sample(inputs: Inputs, gradients: bool) -> list[Tensor]:
    """Return the outputs, or the six gradients, of the sample."""
    num_text, num_summaries = inputs.text.query_BHTD.shape[2], inputs.summary.query_BHTD.shape[2]
    row_R, key_R = sample(inputs)
    visible = _visible(inputs, row_R, num_text, num_summaries)
    group = inputs.text.query_BHTD.shape[1] // inputs.text.key_BGTD.shape[1]
    columns: list[list[Tensor]] = []
    # One group of heads at a time: the scores of a long sequence are large.
    for number in range(inputs.text.key_BGTD.shape[1]):
        heads = slice(number * group, (number + 1) * group)
        query, grad = (
            torch.cat([left[:, heads], right[:, heads]], dim=2).index_select(2, row_R).double()
            for left, right in (
                (inputs.text.query_BHTD, inputs.summary.query_BHTD),
                (inputs.grad_text_BHTD, inputs.grad_summary_BHSD),
            )
        )
        key, value = (
            torch.cat([near[:, number : number + 1], far[:, number : number + 1]], dim=2).double()
            for near, far in zip(inputs.text[1:], inputs.summary[1:], strict=True)
        )
        given = grad if gradients else None
        columns.append(_attend((query, key, value), visible, inputs.pattern.scale, given))
    parts = [torch.cat(column, dim=1) for column in zip(*columns, strict=True)]
    found = []
    for is_text in (True, False):
        for number, part in enumerate(parts):
            if number == 0:
                found.append(part[:, :, (row_R < num_text) == is_text])
            else:
                found.append(part.index_select(2, key_R[(key_R < num_text) == is_text]))
    return found


def _attend(operands: tuple[Tensor, ...], visible: Tensor, scale: float, grad: Tensor | None) -> list[Tensor]:
    """Outputs, or the gradients of queries, keys and values."""
    operands = tuple(operand.requires_grad_(grad is not None) for operand in operands)
    query, key, value = operands
    score = (query @ key.transpose(2, 3) * scale).masked_fill(~visible, -torch.inf)
    out = torch.softmax(score, dim=-1) @ value
    return [out] if grad is None else list(torch.autograd.grad(out, operands, grad))


def _visible(inputs: Inputs, row_R: Tensor, num_text: int, num_summaries: int) -> Tensor:
    """Who reads whom, (B or 1, 1, R, N)."""
    pattern = inputs.pattern
    chunk_N, part_N = kinds(pattern, num_text, num_summaries, row_R.device)
    chunk_R1, part_R1 = chunk_N[row_R][:, None], part_N[row_R][:, None]
    apart_RN = chunk_R1 - chunk_N
    not_later_RN = (apart_RN > 0) | ((apart_RN == 0) & (part_R1 >= part_N))
    by_text_RN = (apart_RN <= pattern.window) ^ (part_N >= pattern.chunk)
    reads_RN = torch.where(part_R1 >= pattern.chunk, apart_RN == 0, by_text_RN)
    visible = (not_later_RN & reads_RN)[None]
    if pattern.first_chunk_BC is not None:
        visible = visible & (chunk_N >= pattern.first_chunk_BC[:, chunk_N[row_R]][:, :, None])
    return visible[:, None]
