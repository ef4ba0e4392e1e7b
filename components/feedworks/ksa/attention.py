"""KSA (arXiv 2604.24432): attention over text and summary rows, as one of transformers' attention functions.

Rows of a sequence come as its text rows, then its summary rows. Shape letters: B batch, T text rows, S
summary rows, R = T + S, H query heads, G key and value heads, E width of a head, k chunk, W window in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from feedworks_kernels import summary_attention
from feedworks_kernels.summary_attention import Rows

NAME = "feedworks_summary"


class Plan(NamedTuple):
    """How the rows of one forward pass are laid out; the same for all layers.

    Attributes:
        num_text: T, the first rows.
        first_chunk_BC: of packed documents, see `feedworks_kernels.summary_attention.first_chunks`.
        document_BT: of packed documents, for layers without summaries.
        full: all layers read all text raw, as the model did before its conversion.
        outputs: called with each layer's attention output (B, T, D) of the text rows. A function and not a
            list, of which FSDP would hand every layer a copy.
        slots: where a cache keeps the prompts.
        lengths: tokens of the prompts.
    """

    num_text: int
    first_chunk_BC: Tensor | None = None
    document_BT: Tensor | None = None
    full: bool = False
    outputs: Callable[[Tensor], None] | None = None
    slots: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()


def forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    plan: Plan,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attend by the rule of `module`'s layer.

    Args:
        module: a `feedworks.ksa.model.KsaAttention`.
        query: (B, H, R, E), rotary positions applied.
        key: (B, G, R, E).
        value: (B, G, R, E).
        attention_mask: not used: `plan` says what is read.
        scaling: factor of the products.
        plan: of this pass.
        unused: what transformers hands to every attention function.

    Returns:
        (B, R, H, E), and no weights.
    """
    num_text = plan.num_text
    window, chunk, summaries = module.window, module.config.chunk, module.config.summaries
    num_rows = query.shape[2]
    if num_rows == num_text:
        if plan.full or window is None:
            out = _causal(query, key, value, scaling, plan.document_BT)
        else:
            out = banded(query, key, value, scaling, reach(window, chunk, module.config.raw_window), plan)
        return out.transpose(1, 2), None
    text = Rows(*(rows[:, :, :num_text] for rows in (query, key, value)))
    summary = Rows(*(rows[:, :, num_text:] for rows in (query, key, value)))
    both = summary_attention(
        text,
        summary,
        chunk=chunk,
        window=window,
        summaries=summaries,
        first_chunk_BC=plan.first_chunk_BC,
        scale=scaling,
    )
    return torch.cat(both, dim=2).transpose(1, 2), None


class Reach(NamedTuple):
    """Which text a row without summaries reads: `step` 1 counts tokens, k counts chunks; `num` before it."""

    step: int
    num: int


def reach(window: int, chunk: int, raw_window: str) -> Reach:
    """Return how far a row reads: W chunks before its own, or as many tokens as that is at most."""
    return Reach(1, (window + 1) * chunk - 1) if raw_window == "token" else Reach(chunk, window)


def banded(
    query_BHTE: Tensor, key_BGTE: Tensor, value_BGTE: Tensor, scaling: float, band: Reach, plan: Plan
) -> Tensor:
    """Causal attention over a band, in blocks: time and memory grow with T, not with T squared.

    Args:
        query_BHTE: queries.
        key_BGTE: keys.
        value_BGTE: values.
        scaling: factor of the products.
        band: how far a row reads.
        plan: its `document_BT` bounds what is read, too.

    Returns:
        (B, H, T, E).
    """
    batch, _, num_text, _ = query_BHTE.shape
    # A row of block i reads nothing before block i - 1.
    block = min(num_text, max(16, (band.num + 1) * band.step))
    num_blocks = -(-num_text // block)
    query = _blocks(query_BHTE, num_blocks, block)
    key, value = (_with_earlier(_blocks(rows, num_blocks, block)) for rows in (key_BGTE, value_BGTE))
    mask_BNQK = _band_mask(num_blocks, block, band, plan.document_BT, query.device).expand(batch, -1, -1, -1)
    out = F.scaled_dot_product_attention(
        query.flatten(0, 1),
        key.flatten(0, 1),
        value.flatten(0, 1),
        attn_mask=mask_BNQK.flatten(0, 1)[:, None],
        scale=scaling,
        enable_gqa=_grouped(query_BHTE, key_BGTE),
    )
    return out.view(batch, num_blocks, *out.shape[1:]).transpose(1, 2).flatten(2, 3)[:, :, :num_text]


def _blocks(rows_BHTE: Tensor, num_blocks: int, block: int) -> Tensor:
    """Return (B, N, H, block, E), zeros behind the last row."""
    batch, num_heads, num_text, width = rows_BHTE.shape
    padded = F.pad(rows_BHTE, (0, 0, 0, num_blocks * block - num_text))
    return padded.view(batch, num_heads, num_blocks, block, width).transpose(1, 2)


def _with_earlier(rows_BNHKE: Tensor) -> Tensor:
    """Put each block's predecessor before it, zeros before the first."""
    earlier = F.pad(rows_BNHKE, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
    return torch.cat((earlier, rows_BNHKE), dim=3)


def _band_mask(
    num_blocks: int, block: int, band: Reach, document_BT: Tensor | None, device: torch.device
) -> Tensor:
    """Return (1 or B, N, block, 2 block): what a row of a block reads of its predecessor and of itself."""
    place_NQ = torch.arange(num_blocks * block, device=device).view(num_blocks, block)
    query, key = place_NQ[..., None], torch.cat((place_NQ - block, place_NQ), dim=1)[:, None]
    near = query // band.step - key.div(band.step, rounding_mode="floor") <= band.num
    mask = ((key <= query) & (key >= 0) & near)[None]
    if document_BT is None:
        return mask
    missing = num_blocks * block - document_BT.shape[1]
    document_BNQ = F.pad(document_BT, (0, missing), value=-1).view(-1, num_blocks, block)
    earlier_BNQ = F.pad(document_BNQ, (0, 0, 1, 0), value=-2)[:, :-1]
    return mask & (document_BNQ[..., None] == torch.cat((earlier_BNQ, document_BNQ), dim=2)[:, :, None])


def _causal(
    query_BHTE: Tensor, key_BGTE: Tensor, value_BGTE: Tensor, scaling: float, document_BT: Tensor | None
) -> Tensor:
    mask = None
    if document_BT is not None:
        mask = (document_BT[:, :, None] == document_BT[:, None]).tril()[:, None]
    return F.scaled_dot_product_attention(
        query_BHTE,
        key_BGTE,
        value_BGTE,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=_grouped(query_BHTE, key_BGTE),
    )


def _grouped(query: Tensor, key: Tensor) -> bool:
    return query.shape[1] != key.shape[1]


AttentionInterface.register(NAME, forward)
