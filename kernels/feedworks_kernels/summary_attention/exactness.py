"""How far summary_attention is from its definition in fp64: rows for tests and benches.

Shape letters: B batch, H query heads, G key and value heads, T text rows, S summary rows, D head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from feedworks_kernels.summary_attention import reference, summary_attention
from feedworks_kernels.summary_attention.pattern import Pattern, Rows

TENSORS = (
    "text",
    "summary",
    "grad_text_query",
    "grad_text_key",
    "grad_text_value",
    "grad_summary_query",
    "grad_summary_key",
    "grad_summary_value",
)


class Case(NamedTuple):
    """One point of the sweep. `documents`: the second sequence holds two, cut at its second chunk."""

    num_text: int
    chunk: int
    window: int | None
    summaries: int = 1
    heads: tuple[int, int] = (2, 1)
    width: int = 64
    num_sequences: int = 1
    unfinished: bool = True
    documents: bool = False


def sweep(lengths: Iterable[int] = (3, 64, 301)) -> list[Case]:
    """Return text rows x chunk x summaries x window, with heads, widths and documents taken in turns."""
    heads = itertools.cycle([(1, 1), (4, 1), (8, 1), (4, 4)])
    widths = itertools.cycle([64, 128, 64])
    turns = itertools.cycle(range(5))
    cases = []
    for num_text, chunk, summaries, window in itertools.product(
        lengths, (1, 4, 8, 16, 32), (1, 2), (0, 1, 128, None)
    ):
        turn = next(turns)
        cases.append(
            Case(
                num_text,
                chunk,
                window,
                summaries,
                heads=next(heads),
                width=next(widths),
                num_sequences=2 if turn == 0 else 1,
                unfinished=turn != 1,
                documents=turn == 0,
            )
        )
    return cases


def exactness(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, float]:
    """Return the largest error of the outputs and of every gradient: |got - exact| / (1 + |exact|).

    The form that runs is the one that the dispatch rule, or `testing.forced`, gives. `exact` is the paper's
    definition (`reference.interleaved`) and its derivative by autograd, in fp64 on the same inputs.

    Args:
        case: sizes.
        dtype: of the inputs.
        device: where to run; the exact result is computed there too.
        seed: of the inputs.
    """
    from feedworks_kernels.testing import random_rows  # It imports this package.

    generator = torch.Generator().manual_seed(seed)
    sizes = (case.num_sequences, *case.heads, case.num_text, case.width)
    drawn = random_rows(
        generator, sizes, chunk=case.chunk, summaries=case.summaries, unfinished=case.unfinished, dtype=dtype
    )
    leaves = [x.to(device).requires_grad_() for rows in drawn for x in rows]
    text, summary = Rows(*leaves[:3]), Rows(*leaves[3:])
    first_chunk_BC = _documents(case, device)
    got = summary_attention(
        text,
        summary,
        chunk=case.chunk,
        window=case.window,
        summaries=case.summaries,
        first_chunk_BC=first_chunk_BC,
    )
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    num_chunks = -(-case.num_text // case.chunk)
    window = num_chunks if case.window is None else case.window
    pattern = Pattern(case.chunk, window, case.summaries, case.width**-0.5, first_chunk_BC)
    exact = reference.interleaved(Rows(*doubles[:3]), Rows(*doubles[3:]), pattern)
    grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype).to(device) for x in got]
    found = (*got, *torch.autograd.grad(got, leaves, grads))
    right = (*exact[:2], *torch.autograd.grad(exact[:2], doubles, [x.double() for x in grads]))
    return {name: error(x, y) for name, x, y in zip(TENSORS, found, right, strict=True)}


def error(got: Tensor, exact: Tensor) -> float:
    """Return the largest |got - exact| / (1 + |exact|): <= a tolerance: `assert_close` holds."""
    got, exact = got.detach(), exact.detach()
    if not exact.numel():
        return 0.0
    if not bool(got.isfinite().all()):
        return float("inf")
    return float(((got.double() - exact).abs() / (1 + exact.abs())).max())


def _documents(case: Case, device: str) -> Tensor | None:
    if not case.documents:
        return None
    num_chunks = -(-case.num_text // case.chunk)
    first_chunk_BC = torch.zeros(case.num_sequences, num_chunks, dtype=torch.int32)
    first_chunk_BC[1:, 1:] = 1
    return first_chunk_BC.to(device)
