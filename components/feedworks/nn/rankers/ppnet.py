"""PEPNet: gates made from ids scale the layers (PPNet) and, before them, the embeddings (EPNet).

PEPNet: Parameter and Embedding Personalized Network (Chang et al., arXiv 2302.01115). A gate unit is
`2 * sigmoid(W2 relu(W1 [ids, stop_gradient(x)]))` (its equations 3 to 5 with the scale 2 of the paper): it
may read x, but training may not change x through it.
Shape legend: B rows, U and I fields of user and item, D width of the joined input, A width of what the gate
reads, H width of a layer, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from feedworks.nn.rankers.inputs import Features, JoinedEmbedding
from feedworks.nn.rankers.tower import Tower

GATE_SCALE = 2.0


class GateUnit(nn.Module):
    """Factors between 0 and 2 for the units of a layer.

    Args:
        width: A.
        hidden: width between the two products.
        outputs: H of the layer that is scaled.
    """

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, outputs)

    def forward(self, prior_BE: Tensor, x_BD: Tensor) -> Tensor:
        """Return factors `(B, H)`; `x_BD` gets no gradient."""
        given_BA = torch.cat([prior_BE, x_BD.detach()], dim=-1)
        return GATE_SCALE * torch.sigmoid(self.second(torch.relu(self.first(given_BA))))


class PPNet(nn.Module):
    """Dense layers whose units are scaled by gates of the user's and the item's id.

    The paper's own ids are user, item and author; here they are chosen fields of both sides. The gates scale
    the output of each layer, so that the first product stays one over the concatenation.

    Args:
        features: what it reads.
        tower: the layers; their number is that of the gates.
        gate_user: which of the user's fields the gates read.
        gate_item: which of the item's fields the gates read.
        gate_hidden: width inside a gate; 0 for that of the layer.
        domain: which of the user's fields EPNet reads to scale the embeddings; none for PPNet alone.
    """

    def __init__(
        self,
        features: Features,
        tower: Tower,
        *,
        gate_user: Sequence[int] = (0,),
        gate_item: Sequence[int] = (0,),
        gate_hidden: int = 0,
        domain: Sequence[int] = (),
    ) -> None:
        super().__init__()
        width = features.joined_width
        self.embedding = JoinedEmbedding(features)
        self.gate_user, self.gate_item, self.domain = list(gate_user), list(gate_item), list(domain)
        prior = (len(gate_user) + len(gate_item)) * features.width
        self.domain_gate = (
            GateUnit(len(domain) * features.width + width, gate_hidden or width, width) if domain else None
        )
        self.layers = tower.layers(width)
        self.gates = nn.ModuleList(
            GateUnit(prior + width, gate_hidden or hidden, hidden) for hidden in tower.hidden
        )
        self.last = nn.Linear(tower.output_width(width), 1)

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        user_number: Tensor | None = None,
        item_number: Tensor | None = None,
    ) -> Tensor:
        """Return logits `(B,)` of ids `(B, U)` and `(B, I)`."""
        x_BD = self.embedding(user, item, user_number, item_number)
        user_BUE, item_BIE = self.embedding.user_fields(user), self.embedding.item_fields(item)
        if self.domain_gate is not None:
            x_BD = self.domain_gate(_chosen(user_BUE, self.domain), x_BD) * x_BD
        prior_BE = torch.cat([_chosen(user_BUE, self.gate_user), _chosen(item_BIE, self.gate_item)], dim=-1)
        hidden_BH = x_BD
        for layer, gate in zip(self.layers, self.gates, strict=True):
            hidden_BH = gate(prior_BE, x_BD) * layer(hidden_BH)
        logit_B1: Tensor = self.last(hidden_BH)
        return logit_B1.squeeze(-1)


def _chosen(fields_BFE: Tensor, places: list[int]) -> Tensor:
    # Slices, not an index tensor: a column cut out of a concatenation can still be traced to its side.
    return torch.cat([fields_BFE[:, place] for place in places], dim=-1)
