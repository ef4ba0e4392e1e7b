"""Q-Former: a few learned queries that read a sequence of any length into a fixed number of tokens.

After BLIP-2 (Li et al., arXiv 2301.12597): in each layer the queries attend to each other, then to the
sequence, then pass a dense part; each behind a norm, with a residual. Here a condition, such as a user's
profile, moves the queries before the first layer.
Shape legend: B rows, Q queries, T tokens of the sequence, S their width, D width, U width of the condition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feedworks.nn.attention import MaskedAttention

EXPANSION = 2


class QFormerLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the sequence, dense part."""

    def __init__(self, width: int, num_heads: int, source_width: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.among = MaskedAttention(width, num_heads, dropout=dropout)
        self.across = MaskedAttention(width, num_heads, source_width=source_width, dropout=dropout)
        self.dense = nn.Sequential(
            nn.Linear(width, EXPANSION * width), nn.GELU(), nn.Linear(EXPANSION * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, query_BQD: Tensor, source_BTS: Tensor, real_BT: Tensor) -> Tensor:
        """Return the queries `(B, Q, D)` after one more look at the sequence."""
        normal_BQD = self.norms[0](query_BQD)
        all_BQ = torch.ones_like(normal_BQD[..., 0], dtype=torch.bool)
        query_BQD = query_BQD + self.dropout(self.among(normal_BQD, normal_BQD, all_BQ))
        query_BQD = query_BQD + self.dropout(self.across(self.norms[1](query_BQD), source_BTS, real_BT))
        added_BQD: Tensor = self.dropout(self.dense(self.norms[2](query_BQD)))
        return query_BQD + added_BQD


class QFormer(nn.Module):
    """Reads a sequence into Q tokens.

    Args:
        width: D, a multiple of `num_heads`.
        num_queries: Q.
        num_layers: layers.
        num_heads: attention heads.
        source_width: S.
        condition_width: U; 0 for queries that are the same for everybody.
        dropout: probability on weights and residual branches.
    """

    def __init__(
        self,
        *,
        width: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        source_width: int,
        condition_width: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.query_QD = nn.Parameter(torch.randn(num_queries, width) * width**-0.5)
        self.condition = nn.Linear(condition_width, width) if condition_width else None
        self.layers = nn.ModuleList(
            QFormerLayer(width, num_heads, source_width, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, source_BTS: Tensor, real_BT: Tensor, condition_BU: Tensor | None = None) -> Tensor:
        """Return `(B, Q, D)`, whatever T is; padding is never read, T or all real tokens may be missing.

        Args:
            source_BTS: the sequence.
            real_BT: bool, False at padding.
            condition_BU: given exactly if the module was made for one.
        """
        query_BQD = self.query_QD.unsqueeze(0).expand(source_BTS.shape[0], -1, -1)
        if self.condition is not None and condition_BU is not None:
            query_BQD = query_BQD + self.condition(condition_BU).unsqueeze(1)
        for layer in self.layers:
            query_BQD = layer(query_BQD, source_BTS, real_BT)
        found_BQD: Tensor = self.norm(query_BQD)
        return found_BQD
