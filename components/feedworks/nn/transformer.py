"""A decoder-only Transformer whose history is computed once and shared by many continuations.

RMSNorm before each part, rotary positions, SwiGLU. `Decoder.forward` is the training pass, `prefill` also
returns keys and values, and `extend` continues a prefix along K branches (beams or candidates) that do not
see each other: the prefix is stored once per row and broadcast, never copied per branch.

Shape legend: B rows, T prefix tokens, D width, H heads, E width of a head, K branches, Q new tokens of a
branch, S tokens that a branch already holds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerCache(NamedTuple):
    """Keys and values of one layer: `(B, H, T, E)` for a prefix, `(B, K, H, S, E)` for branches."""

    key: Tensor
    value: Tensor


class Prefix(NamedTuple):
    """A prefilled history: one cache per layer and the number of real tokens in each row."""

    layers: tuple[LayerCache, ...]
    length_B: Tensor


class Rotation(NamedTuple):
    """Cosine and sine of every position and frequency: `(..., T, E / 2)`."""

    cos: Tensor
    sin: Tensor


def rotation(position: Tensor, width: int, base: float = 10_000.0) -> Rotation:
    """Angles of rotary positions (RoPE, arXiv 2104.09864).

    Args:
        position: integer positions `(..., T)`.
        width: E, even.
        base: wavelength base.
    """
    half = width // 2
    exponent = torch.arange(half, device=position.device, dtype=torch.float32) / half
    angle = position.unsqueeze(-1).to(torch.float32) * base**-exponent
    return Rotation(angle.cos(), angle.sin())


def rotary(x: Tensor, by: Rotation) -> Tensor:
    """Rotate the halves of the last axis of `(..., T, E)`."""
    left, right = x.chunk(2, dim=-1)
    cos, sin = by.cos.to(x.dtype), by.sin.to(x.dtype)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Continuation(NamedTuple):
    """What every layer needs to know of new tokens that continue a prefix.

    `rotation` broadcasts to `(B, K, H, Q, E / 2)`; with `last_only` the output is that of the last token.
    """

    length_B: Tensor
    rotation: Rotation
    last_only: bool = False


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if width % (2 * num_heads):
            raise ValueError(f"width {width} must be a multiple of 2 * num_heads = {2 * num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, by: Rotation) -> tuple[Tensor, LayerCache]:
        """Attend causally; padding on the right is never seen by real tokens."""
        q, k, v = (part.transpose(1, 2) for part in self._heads(x_BTD))
        q_BHTE, k_BHTE = rotary(q, by), rotary(k, by)
        dropout = self.dropout if self.training else 0.0
        y_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v, is_causal=True, dropout_p=dropout)
        return self.out(y_BHTE.transpose(1, 2).flatten(2)), LayerCache(k_BHTE, v)

    def extend(
        self, x_BKQD: Tensor, at: Continuation, prefix: LayerCache, own: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        """Attend from new tokens of K branches to the shared prefix and to their own branch.

        Args:
            x_BKQD: the new tokens.
            at: where they stand.
            prefix: keys and values of the shared prefix.
            own: keys and values that the branches hold already.

        Returns:
            the output `(B, K, Q, D)`, or `(B, K, 1, D)` with `last_only`, and the branches' cache with the
            new tokens appended.
        """
        q, k, v = (part.transpose(2, 3) for part in self._heads(x_BKQD))
        q_BKHQE, k_BKHQE = rotary(q, at.rotation), rotary(k, at.rotation)
        own = LayerCache(k_BKHQE, v) if own is None else _append(own, k_BKHQE, v)
        if at.last_only:
            q_BKHQE = q_BKHQE[..., -1:, :]
        num_branches, num_new = q_BKHQE.shape[1], q_BKHQE.shape[3]
        scaled_BKHQE = q_BKHQE * q_BKHQE.shape[-1] ** -0.5
        flat_BHFE = scaled_BKHQE.transpose(1, 2).flatten(2, 3)  # F = K * Q
        past_BHFT = flat_BHFE @ prefix.key.transpose(-1, -2)
        past_BHFT = past_BHFT + _padding_bias(at.length_B, prefix.key)
        past_BKHQT = past_BHFT.reshape(*past_BHFT.shape[:2], num_branches, num_new, -1).transpose(1, 2)
        own_BKHQS = scaled_BKHQE @ own.key.transpose(-1, -2)
        own_BKHQS = own_BKHQS + _causal_bias(num_new, own.key)
        weight = torch.cat((past_BKHQT, own_BKHQS), dim=-1).softmax(dim=-1)
        weight = F.dropout(weight, self.dropout, self.training)
        past_weight, own_weight = weight.tensor_split((prefix.key.shape[2],), dim=-1)
        past_BHFE = past_weight.transpose(1, 2).flatten(2, 3) @ prefix.value
        past_BHKQE = past_BHFE.reshape(*past_BHFE.shape[:2], num_branches, num_new, -1)
        y_BKHQE = past_BHKQE.transpose(1, 2) + own_weight @ own.value
        return self.out(y_BKHQE.transpose(2, 3).flatten(3)), own

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.unflatten(-1, (self.num_heads, -1)) for part in self.qkv(x).chunk(3, dim=-1))


class Block(nn.Module):
    """Attention and SwiGLU, each behind RMSNorm and a residual."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width, num_heads, dropout)
        self.mlp_norm = nn.RMSNorm(width)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, by: Rotation) -> tuple[Tensor, LayerCache]:
        """Training and prefill pass."""
        y_BTD, cache = self.attention(self.attention_norm(x_BTD), by)
        return self._feed_forward(x_BTD + self.dropout(y_BTD)), cache

    def extend(
        self, x_BKQD: Tensor, at: Continuation, prefix: LayerCache, own: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        """Continue branches by Q tokens; see `Attention.extend`."""
        y_BKQD, own = self.attention.extend(self.attention_norm(x_BKQD), at, prefix, own)
        kept_BKQD = x_BKQD[:, :, -y_BKQD.shape[2] :]
        return self._feed_forward(kept_BKQD + self.dropout(y_BKQD)), own

    def _feed_forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        added: Tensor = self.dropout(self.down(F.silu(gate) * up))
        return x + added


class Decoder(nn.Module):
    """A stack of blocks with a final norm.

    Args:
        width: D, a multiple of `2 * num_heads`.
        num_layers: number of blocks.
        num_heads: H.
        hidden: inner width of SwiGLU.
        dropout: probability, on attention weights and both residual branches.
    """

    def __init__(self, *, width: int, num_layers: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.head_width = width // num_heads
        self.blocks = nn.ModuleList(Block(width, num_heads, hidden, dropout) for _ in range(num_layers))
        self.norm = nn.RMSNorm(width)
        self.apply(_initialise)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map `(B, T, D)` to `(B, T, D)`, causally."""
        return self.prefill(x_BTD, torch.full((x_BTD.shape[0],), x_BTD.shape[1], device=x_BTD.device))[0]

    def prefill(self, x_BTD: Tensor, length_B: Tensor) -> tuple[Tensor, Prefix]:
        """Run the history once and keep its keys and values.

        Args:
            x_BTD: embedded tokens, real ones first, padding on the right.
            length_B: number of real tokens in each row, at least 1.
        """
        by = rotation(torch.arange(x_BTD.shape[1], device=x_BTD.device), self.head_width)
        layers = []
        for block in self.blocks:
            x_BTD, cache = block(x_BTD, by)
            layers.append(cache)
        return self.norm(x_BTD), Prefix(tuple(layers), length_B)

    def extend(
        self,
        x_BKQD: Tensor,
        prefix: Prefix,
        branch: tuple[LayerCache, ...] | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[Tensor, tuple[LayerCache, ...]]:
        """Continue K branches of each row by Q tokens.

        Args:
            x_BKQD: embedded new tokens.
            prefix: the shared history.
            branch: what `extend` returned for the branches' earlier tokens, None for the first.
            last_only: return the state of the last new token alone; the last layer skips the others.

        Returns:
            states `(B, K, Q, D)`, or `(B, K, 1, D)`, and the branches' caches, one per layer.
        """
        held = 0 if branch is None else branch[0].key.shape[3]
        new_Q = torch.arange(held, held + x_BKQD.shape[2], device=x_BKQD.device)
        by = rotation(prefix.length_B[:, None, None, None] + new_Q, self.head_width)
        caches = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            own = None if branch is None else branch[index]
            at = Continuation(prefix.length_B, by, last_only and index + 1 == len(self.blocks))
            x_BKQD, cache = block.extend(x_BKQD, at, prefix.layers[index], own)
            caches.append(cache)
        return self.norm(x_BKQD), tuple(caches)


def select_rows(prefix: Prefix, row_H: Tensor) -> Prefix:
    """Keep some rows of a prefix."""
    layers = tuple(LayerCache(layer.key[row_H], layer.value[row_H]) for layer in prefix.layers)
    return Prefix(layers, prefix.length_B[row_H])


def select_branches(branch: tuple[LayerCache, ...], parent_BW: Tensor) -> tuple[LayerCache, ...]:
    """Reorder branch caches so that new branch w continues old branch `parent_BW[b, w]`."""
    row_B1 = torch.arange(parent_BW.shape[0], device=parent_BW.device).unsqueeze(1)
    return tuple(LayerCache(c.key[row_B1, parent_BW], c.value[row_B1, parent_BW]) for c in branch)


def _append(own: LayerCache, k_BKHQE: Tensor, v_BKHQE: Tensor) -> LayerCache:
    return LayerCache(torch.cat((own.key, k_BKHQE), dim=3), torch.cat((own.value, v_BKHQE), dim=3))


def _padding_bias(length_B: Tensor, key_BHTE: Tensor) -> Tensor:
    seen_BT = torch.arange(key_BHTE.shape[2], device=key_BHTE.device) < length_B.unsqueeze(1)
    zero = torch.zeros((), dtype=key_BHTE.dtype, device=key_BHTE.device)
    return zero.masked_fill(~seen_BT, float("-inf"))[:, None, None, :]


def _causal_bias(num_new: int, key_BKHSE: Tensor) -> Tensor:
    total = key_BKHSE.shape[3]
    hidden = torch.ones(num_new, total, dtype=torch.bool, device=key_BKHSE.device).triu(total - num_new + 1)
    return torch.zeros_like(hidden, dtype=key_BKHSE.dtype).masked_fill(hidden, float("-inf"))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
