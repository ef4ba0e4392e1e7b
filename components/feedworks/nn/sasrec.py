"""SASRec (arXiv 1808.09781) with a full softmax over the catalogue at every position.

The original trains with one sampled negative; the full softmax is the stronger and simpler baseline.
Shape legend: B rows, T positions, D width, V items, M positions that carry a target.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD = -1


class SASRec(nn.Module):
    """Self-attentive next-item model with tied item embeddings.

    Args:
        num_items: V.
        max_length: longest history that is read; longer ones lose their oldest items.
        width: D.
        num_layers: number of Transformer layers.
        num_heads: heads of each layer.
        dropout: probability on embeddings, attention and residual branches.
    """

    def __init__(
        self, *, num_items: int, max_length: int, width: int, num_layers: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.item = nn.Embedding(num_items, width)
        self.position = nn.Embedding(max_length, width)
        layer = nn.TransformerEncoderLayer(
            width, num_heads, dim_feedforward=width * 4, dropout=dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.item.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, item_BT: Tensor) -> Tensor:
        """Return states `(B, T, D)` of histories that are padded with -1 on the right."""
        length = item_BT.shape[1]
        x_BTD = self.item(item_BT.clamp_min(0)) + self.position.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=item_BT.device)
        states_BTD: Tensor = self.layers(self.dropout(x_BTD), mask=mask, is_causal=True)
        return states_BTD

    def loss(self, item_BT: Tensor, target_BT: Tensor) -> Tensor:
        """Mean cross-entropy over the positions whose target is not -1."""
        kept_BT = target_BT != PAD
        logits_MV = self.forward(item_BT)[kept_BT] @ self.item.weight.T
        return F.cross_entropy(logits_MV, target_BT[kept_BT])

    def scores(self, item_BT: Tensor) -> Tensor:
        """Score every item `(B, V)` as the next one after the last real position of each row."""
        last_B = (item_BT != PAD).sum(dim=1).clamp_min(1) - 1
        states_BTD = self.forward(item_BT)
        return states_BTD[torch.arange(len(last_B)), last_B] @ self.item.weight.T
