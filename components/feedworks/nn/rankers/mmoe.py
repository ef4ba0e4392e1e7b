"""MMoE: experts that all tasks share, and a gate of each task over them.

Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts (Ma et al., KDD 2018).
Shape legend: B rows, U and I fields of user and item, D width of the input, X experts, H width of an expert,
T tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feedworks.nn.rankers.inputs import Features, JoinedEmbedding
from feedworks.nn.rankers.tower import Dense, Tower


class MMoE(nn.Module):
    """Experts, gates and towers.

    Args:
        features: what it reads.
        expert: layers of one expert.
        tower: layers of a task over the mixture.
        num_experts: X.
        num_tasks: T.
    """

    def __init__(
        self, features: Features, expert: Tower, tower: Tower, *, num_experts: int = 4, num_tasks: int = 1
    ) -> None:
        super().__init__()
        width = features.joined_width
        self.embedding = JoinedEmbedding(features)
        self.experts = nn.ModuleList(Dense(width, expert) for _ in range(num_experts))
        self.gates = nn.ModuleList(nn.Linear(width, num_experts, bias=False) for _ in range(num_tasks))
        self.towers = nn.ModuleList(
            Dense(expert.output_width(width), tower, outputs=1) for _ in range(num_tasks)
        )

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        user_number: Tensor | None = None,
        item_number: Tensor | None = None,
    ) -> Tensor:
        """Return logits `(B, T)`, or `(B,)` for one task, of ids `(B, U)` and `(B, I)`."""
        x_BD = self.embedding(user, item, user_number, item_number)
        out_BXH = torch.stack([expert(x_BD) for expert in self.experts], dim=1)
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            share_BX = gate(x_BD).softmax(dim=-1)
            logits.append(tower((share_BX.unsqueeze(-1) * out_BXH).sum(dim=1)))
        logit_BT = torch.cat(logits, dim=-1)
        return logit_BT.squeeze(-1) if len(logits) == 1 else logit_BT
