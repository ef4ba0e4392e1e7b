"""Attention of some tokens to others of which a part may be padding, or none may be real.

What stands at a padded place is never read, not even NaN. A row without a real token gets zeros.
Shape legend: B rows, Q queries, T tokens that are attended to, D width, S width of those tokens, H heads,
E = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedAttention(nn.Module):
    """Multi-head attention; keys and values come from another sequence, or from the same one.

    Args:
        width: D, a multiple of `num_heads`.
        num_heads: H.
        source_width: S; 0 for D.
        dropout: probability on the weights.
    """

    def __init__(self, width: int, num_heads: int, *, source_width: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} must be a multiple of num_heads = {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        # Without a bias a source of zeros has the value zero, which is what an empty row gives.
        self.key_value = nn.Linear(source_width or width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, query_BQD: Tensor, source_BTS: Tensor, real_BT: Tensor, *, causal: bool = False
    ) -> Tensor:
        """Attend to the real tokens.

        Args:
            query_BQD: who attends.
            source_BTS: what is attended to; T may be 0.
            real_BT: bool, False at padding.
            causal: query i sees the tokens up to i only; then Q = T.

        Returns:
            `(B, Q, D)`, zeros for a query that sees no real token.
        """
        source_BTS = source_BTS.masked_fill(~real_BT.unsqueeze(-1), 0)
        seen_BQT = real_BT.unsqueeze(1).expand(-1, query_BQD.shape[1], -1)
        if causal:
            seen_BQT = seen_BQT & torch.ones_like(seen_BQT).tril()
        # One more token, all zeros, for those who see nothing else: softmax over no token is NaN.
        source_BTS = F.pad(source_BTS, (0, 0, 0, 1))
        seen_BQT = torch.cat([seen_BQT, ~seen_BQT.any(dim=-1, keepdim=True)], dim=-1)
        query_BHQE = self._heads(self.query(query_BQD))
        key_BHTE, value_BHTE = (self._heads(part) for part in self.key_value(source_BTS).chunk(2, dim=-1))
        found_BHQE = F.scaled_dot_product_attention(
            query_BHQE,
            key_BHTE,
            value_BHTE,
            attn_mask=seen_BQT.unsqueeze(1),
            dropout_p=self.dropout if self.training else 0.0,
        )
        found_BQD: Tensor = self.out(found_BHQE.transpose(1, 2).flatten(2))
        return found_BQD

    def _heads(self, x_BTD: Tensor) -> Tensor:
        rows, places, _ = x_BTD.shape
        return x_BTD.reshape(rows, places, self.num_heads, -1).transpose(1, 2)


def masked_mean(x_BTD: Tensor, real_BT: Tensor) -> Tensor:
    """Mean over the real tokens, `(B, D)`; zeros where there is none."""
    total_BD = x_BTD.masked_fill(~real_BT.unsqueeze(-1), 0).sum(dim=1)
    return total_BD / real_BT.sum(dim=1, keepdim=True).clamp(min=1)


def real_places(length_B: Tensor, size: int) -> Tensor:
    """Mask `(..., size)`, True at the first `length` places of each row; lengths may have any shape."""
    return torch.arange(size, device=length_B.device) < length_B.unsqueeze(-1)
