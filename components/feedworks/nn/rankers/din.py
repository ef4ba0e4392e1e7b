"""DIN: the candidate weighs each entry of the user's history.

Deep Interest Network for Click-Through Rate Prediction (Zhou et al., arXiv 1706.06978): an activation unit
over `[q, k, q - k, q * k]`, whose weights are not normalised (section 4.3), and a weighted sum.
Shape legend: B rows, U and I fields of user and item, L places of the history, E width of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feedworks.nn.rankers.inputs import Features, JoinedEmbedding
from feedworks.nn.rankers.tower import Dense, Tower


class DIN(nn.Module):
    """Target attention before a tower.

    The candidate's key is its first field. The history has ids of that field plus 1; 0 is an empty place.
    Where there is no history, the user's fields themselves are attended to, as a sequence of U entries; that
    is not in the paper.

    Args:
        features: what it reads.
        tower: layers over user, item and the attended history.
        attention: H of each layer of the activation unit.
        has_history: whether `forward` gets a history.
    """

    def __init__(
        self,
        features: Features,
        tower: Tower,
        *,
        attention: tuple[int, ...] = (36,),
        has_history: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = JoinedEmbedding(features)
        self.has_history = has_history
        self.activation = Dense(4 * features.width, Tower(hidden=attention), outputs=1)
        self.dense = Dense(features.joined_width + features.width, tower, outputs=1)

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        history: Tensor | None = None,
        user_number: Tensor | None = None,
        item_number: Tensor | None = None,
    ) -> Tensor:
        """Return logits `(B,)` of ids `(B, U)`, `(B, I)` and `(B, L)`."""
        embedding = self.embedding
        query_BE = embedding.items_first_field(item[:, :1]).squeeze(1)
        if self.has_history:
            assert history is not None
            key_BLE = embedding.items_first_field((history - 1).clamp_min(0))
            attended_BE = self.attend(query_BE, key_BLE, history > 0)
        else:
            attended_BE = self.attend(query_BE, embedding.user_fields(user))
        user_BD = embedding.user(user, user_number)
        item_BD = embedding.item(item, item_number)
        logit_B1: Tensor = self.dense(torch.cat([user_BD, item_BD, attended_BE], dim=-1))
        return logit_B1.squeeze(-1)

    def attend(self, query_BE: Tensor, key_BLE: Tensor, taken_BL: Tensor | None = None) -> Tensor:
        """Sum of the keys `(B, E)`, each times the activation unit's number for it and the query.

        Args:
            query_BE: the candidate.
            key_BLE: the history.
            taken_BL: places that count; all of them where it is not given.
        """
        query_BLE = query_BE.unsqueeze(1).expand(-1, key_BLE.shape[1], -1)
        pair = torch.cat([query_BLE, key_BLE, query_BLE - key_BLE, query_BLE * key_BLE], dim=-1)
        weight_BL1: Tensor = self.activation(pair)
        if taken_BL is not None:
            weight_BL1 = weight_BL1 * taken_BL.unsqueeze(-1).to(weight_BL1.dtype)
        return (weight_BL1 * key_BLE).sum(dim=1)
