"""Dense layers over the concatenated embeddings: the plain ranker, and the strong baseline on CTR data.

As "DNN" in Open Benchmarking for Click-Through Rate Prediction (Zhu et al., arXiv 2009.05794).
Shape legend: B rows, U and I fields of user and item.
"""

from __future__ import annotations

from torch import Tensor, nn

from feedworks.nn.rankers.inputs import Features, JoinedEmbedding
from feedworks.nn.rankers.tower import Dense, Tower


class MLP(nn.Module):
    """A tower over both sides.

    Args:
        features: what it reads.
        tower: its layers.
    """

    def __init__(self, features: Features, tower: Tower) -> None:
        super().__init__()
        self.embedding = JoinedEmbedding(features)
        self.dense = Dense(features.joined_width, tower, outputs=1)

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        user_number: Tensor | None = None,
        item_number: Tensor | None = None,
    ) -> Tensor:
        """Return logits `(B,)` of ids `(B, U)` and `(B, I)`."""
        logit_B1: Tensor = self.dense(self.embedding(user, item, user_number, item_number))
        return logit_B1.squeeze(-1)
