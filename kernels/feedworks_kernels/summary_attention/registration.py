"""summary_attention as operators of torch, which torch.export and torch.compile keep as one node.

One body for all devices (the form is chosen inside), shapes for tracing, and a gradient that is not
differentiable again.

Shape letters: B batch, H query heads, G key and value heads, T text rows, S summary rows, D head width, C
chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, library

from feedworks_kernels._dispatch import implementation
from feedworks_kernels.summary_attention import eager
from feedworks_kernels.summary_attention.checks import check_rows
from feedworks_kernels.summary_attention.pattern import Forward, Pattern, Rows

UNBOUNDED = -1
_OP = "summary_attention"
_TENSORS = (
    "Tensor text_query, Tensor text_key, Tensor text_value, "
    "Tensor summary_query, Tensor summary_key, Tensor summary_value"
)
_SIZES = "Tensor? first_chunk, int chunk, int window, int summaries, float scale"


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors, sizes = arguments[:6], arguments[6:]
    text, summary, pattern = _arrange(tensors, *sizes)
    check_rows(text, summary, pattern)
    if not (text.query_BHTD.numel() or summary.query_BHTD.numel()):
        return _empty(text.query_BHTD, summary.query_BHTD)
    with _alone(text.query_BHTD):
        forward: Forward = _form(text.query_BHTD)(text, summary, pattern)
    queries = (text.query_BHTD, summary.query_BHTD)
    out_text, out_summary = (_laid_out(x, like) for x, like in zip(forward[:2], queries, strict=True))
    return out_text, out_summary, forward.text_lse_BHT, forward.summary_lse_BHS


def _gradient(*arguments: Any) -> tuple[Tensor, ...]:
    grads, tensors, forward, sizes = arguments[:2], arguments[2:8], arguments[8:12], arguments[12:]
    text, summary, pattern = _arrange(tensors, *sizes)
    if not (text.query_BHTD.numel() or summary.query_BHTD.numel()):
        return tuple(torch.zeros_like(x) for x in tensors)
    with _alone(text.query_BHTD):
        result = _form(text.query_BHTD, "gradient")(*grads, text, summary, Forward(*forward), pattern)
    flat = (*result.text, *result.summary)
    return tuple(_laid_out(x, like) for x, like in zip(flat, tensors, strict=True))


@contextmanager
def _alone(query: Tensor) -> Iterator[None]:
    """Neither record nor let torch choose other types inside: both are settled outside."""
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        yield


def _arrange(
    tensors: tuple[Tensor, ...],
    first_chunk_BC: Tensor | None,
    chunk: int,
    window: int,
    summaries: int,
    scale: float,
) -> tuple[Rows, Rows, Pattern]:
    pattern = Pattern(chunk, window, summaries, scale, first_chunk_BC)
    num_chunks = pattern.num_chunks(tensors[0].shape[2]) if tensors[0].ndim == 4 else 0
    window = num_chunks if window == UNBOUNDED else min(window, num_chunks)
    return Rows(*tensors[:3]), Rows(*tensors[3:]), pattern._replace(window=window)


def _form(query: Tensor, part: str = "") -> Callable[..., Any]:
    run = implementation(_OP, query.device, part)
    if run.__module__.endswith("kernel") and query.dtype == torch.float64:
        return getattr(eager, part or _OP)  # type: ignore[no-any-return]
    return run


def _empty(text_query: Tensor, summary_query: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what has the forward pass's shapes, types and strides."""
    whole = torch.float64 if text_query.dtype == torch.float64 else torch.float32
    lses = (query.new_empty(query.shape[:3], dtype=whole) for query in (text_query, summary_query))
    return (torch.empty_like(text_query), torch.empty_like(summary_query), *lses)  # type: ignore[return-value]


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor in memory of its own, with the strides that tracing promised: those of empty_like."""
    whole_storage = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    if whole_storage and tensor.stride() == like.stride():
        return tensor
    if whole_storage and tensor.stride() == torch.empty_like(like, device="meta").stride():
        return tensor
    return torch.empty_like(like).copy_(tensor)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.sizes = inputs[7:]


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, first_chunk_BC, out_text, out_summary, lse_text, lse_summary = ctx.saved_tensors
    forward = (out_text, out_summary, lse_text, lse_summary)
    found = summary_attention_gradient(*grads[:2], *tensors, *forward, first_chunk_BC, *ctx.sizes)
    asked = zip(found, ctx.needs_input_grad, strict=False)
    return (*(grad if needed else None for grad, needed in asked), *(None,) * 5)


summary_attention = library.custom_op(
    "feedworks::summary_attention",
    _forward,
    mutates_args=(),
    schema=f"({_TENSORS}, {_SIZES}) -> (Tensor, Tensor, Tensor, Tensor)",
)
summary_attention_gradient = library.custom_op(
    "feedworks::summary_attention_gradient",
    _gradient,
    mutates_args=(),
    schema=f"(Tensor grad_text, Tensor grad_summary, {_TENSORS}, Tensor text, Tensor summary, "
    f"Tensor text_lse, Tensor summary_lse, {_SIZES}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@summary_attention.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]  # noqa: ANN002, ANN202
    return _empty(arguments[0], arguments[3])


@summary_attention_gradient.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]  # noqa: ANN002, ANN202
    return tuple(torch.empty_like(x) for x in arguments[2:8])


summary_attention.register_autograd(_backward, setup_context=_keep)
