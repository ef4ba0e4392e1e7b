"""What a ranker reads: ids of the user's and the item's fields from one table, and numbers beside them.

Shape legend: B rows, U fields of the user, I fields of the item, F = U or I, E width of an embedding,
P numbers of the user, Q numbers of the item, D = (U + I) E + P + Q.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

# Of FuxiCTR and the BARS leaderboard: rows that training never meets then add next to nothing.
INIT_STD = 1e-4


@dataclass(frozen=True, kw_only=True)
class Features:
    """Sizes of what a ranker reads.

    Attributes:
        user_sizes: ids of each field of the user (and of the request), U entries.
        item_sizes: ids of each field of the item, I entries.
        width: E.
        user_numbers: P; where it is not 0 the ranker takes `user_number` (B, P).
        item_numbers: Q; where it is not 0 the ranker takes `item_number` (B, Q).
    """

    user_sizes: tuple[int, ...]
    item_sizes: tuple[int, ...]
    width: int
    user_numbers: int = 0
    item_numbers: int = 0

    @property
    def user_width(self) -> int:
        """Columns of the user's side."""
        return len(self.user_sizes) * self.width + self.user_numbers

    @property
    def item_width(self) -> int:
        """Columns of the item's side."""
        return len(self.item_sizes) * self.width + self.item_numbers

    @property
    def joined_width(self) -> int:
        """D."""
        return self.user_width + self.item_width


class JoinedEmbedding(nn.Module):
    """The rows of all fields in one table: one lookup for each side instead of one for each field."""

    user_start: Tensor
    item_start: Tensor

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features
        sizes = (*features.user_sizes, *features.item_sizes)
        start = torch.tensor([0, *accumulate(sizes)][:-1], dtype=torch.int64)
        num_user = len(features.user_sizes)
        self.register_buffer("user_start", start[:num_user], persistent=False)
        self.register_buffer("item_start", start[num_user:], persistent=False)
        self.table = nn.Embedding(sum(sizes), features.width)
        nn.init.normal_(self.table.weight, std=INIT_STD)

    def user(self, user: Tensor, user_number: Tensor | None = None) -> Tensor:
        """Columns of the user's side, fields first, `(B, U E + P)`.

        Args:
            user: ids `(B, U)`, each below its field's size.
            user_number: `(B, P)`.
        """
        return _beside(self.user_fields(user).flatten(1), user_number)

    def item(self, item: Tensor, item_number: Tensor | None = None) -> Tensor:
        """Columns of the item's side, fields first, `(B, I E + Q)`."""
        return _beside(self.item_fields(item).flatten(1), item_number)

    def user_fields(self, user: Tensor) -> Tensor:
        """Embeddings of the user's fields, `(B, U, E)`."""
        rows_BUE: Tensor = self.table(user + self.user_start)
        return rows_BUE

    def item_fields(self, item: Tensor) -> Tensor:
        """Embeddings of the item's fields, `(B, I, E)`."""
        rows_BIE: Tensor = self.table(item + self.item_start)
        return rows_BIE

    def items_first_field(self, id_BL: Tensor) -> Tensor:
        """Embeddings of ids of the item's first field, `(B, L, E)`."""
        rows_BLE: Tensor = self.table(id_BL + self.item_start[0])
        return rows_BLE

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        user_number: Tensor | None = None,
        item_number: Tensor | None = None,
    ) -> Tensor:
        """Both sides beside each other, the user's first, `(B, D)`."""
        return torch.cat([self.user(user, user_number), self.item(item, item_number)], dim=-1)


def _beside(fields: Tensor, numbers: Tensor | None) -> Tensor:
    return fields if numbers is None else torch.cat([fields, numbers], dim=-1)
