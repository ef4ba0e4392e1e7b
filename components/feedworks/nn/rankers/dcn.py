"""DCNv2: cross layers `x0 * (W x + b) + x` beside dense layers.

DCN V2: Improved Deep & Cross Network (Wang et al., arXiv 2008.13535), the parallel structure of its figure 1b
with full-rank cross layers (its equation 1).
Shape legend: B rows, U and I fields of user and item, D width of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feedworks.nn.rankers.inputs import Features, JoinedEmbedding
from feedworks.nn.rankers.tower import Dense, Tower


class DCNv2(nn.Module):
    """Cross layers and a tower side by side, and one product over both.

    Args:
        features: what it reads.
        tower: the dense layers.
        num_cross: number of cross layers, at least 1.
    """

    def __init__(self, features: Features, tower: Tower, *, num_cross: int = 3) -> None:
        super().__init__()
        width = features.joined_width
        self.embedding = JoinedEmbedding(features)
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(num_cross))
        self.dense = Dense(width, tower)
        self.last = nn.Linear(width + self.dense.width, 1)

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        user_number: Tensor | None = None,
        item_number: Tensor | None = None,
    ) -> Tensor:
        """Return logits `(B,)` of ids `(B, U)` and `(B, I)`."""
        first_BD = self.embedding(user, item, user_number, item_number)
        x_BD = first_BD
        for cross in self.crosses:
            x_BD = first_BD * cross(x_BD) + x_BD
        logit_B1: Tensor = self.last(torch.cat([x_BD, self.dense(first_BD)], dim=-1))
        return logit_B1.squeeze(-1)
