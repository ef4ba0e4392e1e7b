"""OCARM (arXiv 2604.25839): the teacher that reads content, the student that cannot, and the base of both.

All three read the observables into x_u: request, profile, the ad's item, and the means of both sequences.
The base is a retention net f on x_u. The teacher is f on [x_u ; e_c], where the Hierarchical Attention
Encoder makes e_c from what users met after they came back. The student is f on [x_u ; e_u], where the
Sequence Fusion Encoder makes e_u from the sequences before. Only the teacher's `forward` has an argument for
content.

Shape legend: B rows, T events, A returns, D width, U width of x_u, C width of the codes' embeddings, S days
of content, N items of a day, H horizons, Q queries, I rows of the item table, V width of an item's vector,
W width of what a retention net reads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedworks.contracts.retention import NUM_CATEGORIES, NUM_SURFACES
from feedworks.nn.attention import MaskedAttention, masked_mean, real_places
from feedworks.nn.qformer import QFormer
from feedworks.nn.rankers.ppnet import GateUnit
from feedworks.nn.rankers.tower import Dense, Tower
from feedworks.ocarm.config import Architecture, ModelConfig, Sizes
from feedworks.ocarm.data import (
    CODES,
    CONTENT_NUMBERS,
    HISTORY_NUMBERS,
    RETURN_NUMBERS,
    Content,
    ItemTable,
    Observable,
    number_names,
)

# As large as what a vector of unit variance adds: a token in which the category drowns is learned late.

TOKEN_STD = 0.5


class Seen(NamedTuple):
    """The observables, read: x_u, the part of it that gates read, and the tokens of both sequences."""

    x_BU: Tensor
    prior_BC: Tensor
    history_BTD: Tensor
    history_real_BT: Tensor
    return_BAD: Tensor
    return_real_BA: Tensor


class Items(nn.Module):
    """An item as a token: its vector, its category and, if asked for, an embedding of its own.

    Vectors and categories are buffers, so a model folder holds the catalogue that the model was made for.
    """

    vector_IV: Tensor
    category_I: Tensor

    def __init__(self, sizes: Sizes, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("vector_IV", torch.zeros(sizes.num_items, sizes.vector_width))
        self.register_buffer("category_I", torch.zeros(sizes.num_items, dtype=torch.int64))
        self.vector = nn.Linear(sizes.vector_width, config.width, bias=False)
        self.category = _embedding(NUM_CATEGORIES + 1, config.width, TOKEN_STD)
        self.own = _embedding(sizes.num_items, config.width, 0.1) if config.item_ids else None

    def fill(self, table: ItemTable) -> None:
        """Take over the catalogue; row 0 stays an item about which nothing is known."""
        self.vector_IV[1:] = torch.tensor(table.vector_IV)
        self.category_I[1:] = torch.tensor(table.category_I) + 1

    def forward(self, row: Tensor, category: Tensor | None = None) -> Tensor:
        """Tokens `(..., D)` of rows of any shape; without `category` that of the catalogue is taken."""
        category = self.category_I[row] if category is None else category
        token: Tensor = self.vector(self.vector_IV[row]) + self.category(category)
        return token if self.own is None else token + self.own(row)


class Observer(nn.Module):
    """Reads the observables; the same in every arm, so that arms differ in what comes after."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        config = architecture.model
        width, code = config.width, config.code_width
        self.items = Items(architecture.sizes, config)
        self.codes = nn.ModuleList(_embedding(size + 1, code) for size in CODES.values())
        self.surface = _embedding(NUM_SURFACES + 1, width)
        self.history_number = nn.Linear(HISTORY_NUMBERS, width)
        self.return_number = nn.Linear(RETURN_NUMBERS, width)
        self.history_norm, self.return_norm, self.ad_norm = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)
        self.prior_width = len(CODES) * code
        self.width = 2 * len(number_names(architecture.samples)) + self.prior_width + 3 * width

    def forward(self, observable: Observable) -> Seen:
        """Read the observables into x_u and tokens."""
        row, category, surface = observable.history_code_BT3.unbind(-1)
        history_BTD = self.history_norm(
            self.items(row, category)
            + self.surface(surface)
            + self.history_number(observable.history_number_BT3)
        )
        return_BAD = self.return_norm(
            self.surface(observable.return_code_BA1.squeeze(-1))
            + self.return_number(observable.return_number_BA2)
        )
        history_real_BT = real_places(observable.history_length_B, history_BTD.shape[1])
        return_real_BA = real_places(observable.return_length_B, return_BAD.shape[1])
        prior_BC = torch.cat(
            [table(code) for table, code in zip(self.codes, observable.code_BC.unbind(1), strict=True)], dim=1
        )
        x_BU = torch.cat(
            [
                observable.number_BP,
                prior_BC,
                self.ad_norm(self.items(observable.ad_item_B)),
                masked_mean(history_BTD, history_real_BT),
                masked_mean(return_BAD, return_real_BA),
            ],
            dim=1,
        )
        return Seen(self.dropout(x_BU), prior_BC, history_BTD, history_real_BT, return_BAD, return_real_BA)


class RetentionNet(nn.Module):
    """f: a PPNet tower for each horizon; gates read the codes' embeddings and, detached, the input."""

    def __init__(self, width: int, prior_width: int, architecture: Architecture) -> None:
        super().__init__()
        config = architecture.model
        tower = Tower(hidden=config.hidden, dropout=config.dropout)
        horizons = range(len(architecture.samples.horizons))
        self.layers = nn.ModuleList(tower.layers(width) for _ in horizons)
        self.gates = nn.ModuleList(
            nn.ModuleList(
                GateUnit(prior_width + width, config.gate_hidden or hidden, hidden)
                for hidden in config.hidden
            )
            for _ in horizons
        )
        self.last = nn.ModuleList(nn.Linear(config.hidden[-1], 1) for _ in horizons)

    def forward(self, x_BHW: Tensor, prior_BC: Tensor) -> Tensor:
        """Return logits `(B, H)`; every horizon has an input of its own."""
        logits = []
        for x_BW, layers, gates, last in zip(
            x_BHW.unbind(1), self.layers, self.gates, self.last, strict=True
        ):
            hidden_BW = x_BW
            for layer, gate in zip(layers, gates, strict=True):  # type: ignore[call-overload]
                hidden_BW = gate(prior_BC, x_BW) * layer(hidden_BW)
            logits.append(last(hidden_BW))
        return torch.cat(logits, dim=1)


class PPNetBase(nn.Module):
    """f on x_u alone: what can be had without sequence encoder and without teacher."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.observer = Observer(architecture)
        self.retention = RetentionNet(self.observer.width, self.observer.prior_width, architecture)

    def forward(self, observable: Observable) -> Tensor:
        """Return logits `(B, H)`."""
        seen = self.observer(observable)
        logit_BH: Tensor = self.retention(_repeat(seen.x_BU, self.architecture), seen.prior_BC)
        return logit_BH


class HierarchicalAttentionEncoder(nn.Module):
    """HAE: items into days with x_u as the query, days into a state with causal attention, heads per horizon.

    A softmax over items cannot count them, so the number of a day's items is added to the day. The state that
    heads read is that of the last day before the labels, beside the mean of the days up to it.
    """

    def __init__(self, user_width: int, architecture: Architecture) -> None:
        super().__init__()
        config, samples = architecture.model, architecture.samples
        width, dropout = config.width, config.dropout
        self.number = nn.Linear(CONTENT_NUMBERS, width)
        self.token_norm, self.day_norm, self.state_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query = nn.Linear(user_width, width)
        self.within = MaskedAttention(width, config.num_heads, dropout=dropout)
        self.count = nn.Linear(1, width)
        self.day_SD = nn.Parameter(torch.randn(samples.content_days, width) * 0.02)
        self.across = MaskedAttention(width, config.num_heads, dropout=dropout)
        tower = Tower(hidden=(2 * width,), dropout=dropout)
        self.heads = nn.ModuleList(Dense(2 * width, tower, width) for _ in samples.horizons)

    def days(self, x_BU: Tensor, token_BSND: Tensor, content: Content) -> Tensor:
        """Intra-day attention: a vector for each day, `(B, S, D)`."""
        num_rows, num_days, most, width = token_BSND.shape
        query_BSD = self.query(x_BU).unsqueeze(1).expand(-1, num_days, -1)
        real_BSN = real_places(content.length_BD, most)
        flat = num_rows * num_days
        found: Tensor = self.within(
            query_BSD.reshape(flat, 1, width),
            token_BSND.reshape(flat, most, width),
            real_BSN.reshape(flat, most),
        )
        day_BSD = found.reshape(num_rows, num_days, width) + self.day_SD
        count_BSD: Tensor = self.count(content.count_BD.unsqueeze(-1))
        return day_BSD + count_BSD

    def states(self, day_BSD: Tensor, seen_BS: Tensor) -> Tensor:
        """Inter-day attention: day d sees the days up to d, `(B, S, D)`."""
        normal_BSD = self.day_norm(day_BSD)
        found_BSD: Tensor = self.state_norm(
            day_BSD + self.across(normal_BSD, normal_BSD, seen_BS, causal=True)
        )
        return found_BSD

    def forward(self, x_BU: Tensor, item_BSND: Tensor, content: Content) -> Tensor:
        """Return e_c `(B, H, D)`, each of root mean square 1."""
        token_BSND = self.token_norm(item_BSND + self.number(content.number_BDN2))
        state_BSD = self.states(self.days(x_BU, token_BSND, content), content.seen_BD)
        last_B = content.seen_BD.sum(dim=1).clamp(min=1) - 1
        last_BD = state_BSD[torch.arange(len(last_B), device=last_B.device), last_B]
        state_BW = torch.cat([last_BD, masked_mean(state_BSD, content.seen_BD)], dim=1)
        return torch.stack([_unit(head(state_BW)) for head in self.heads], dim=1)


class Teacher(nn.Module):
    """Stage 1: f on [x_u ; e_c]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.observer = Observer(architecture)
        self.hae = HierarchicalAttentionEncoder(self.observer.width, architecture)
        width = self.observer.width + architecture.model.width
        self.retention = RetentionNet(width, self.observer.prior_width, architecture)

    def forward(self, observable: Observable, content: Content) -> Tensor:
        """Return logits `(B, H)`."""
        return self.both(observable, content)[0]

    def vectors(self, observable: Observable, content: Content) -> Tensor:
        """Return e_c `(B, H, D)`, what the student learns to foresee."""
        return self._encode(self.observer(observable), content)

    def both(self, observable: Observable, content: Content) -> tuple[Tensor, Tensor]:
        """Logits and vectors in one pass."""
        seen = self.observer(observable)
        vector_BHD = self._encode(seen, content)
        return _retained(self.retention, seen, vector_BHD), vector_BHD

    def _encode(self, seen: Seen, content: Content) -> Tensor:
        item_BSND = self.observer.items(*content.code_BDN2.unbind(-1))
        vector_BHD: Tensor = self.hae(seen.x_BU, item_BSND, content)
        return vector_BHD


class SequenceFusionEncoder(nn.Module):
    """SFE: a Q-Former for each sequence with x_u as the condition, and a tower for each horizon."""

    def __init__(self, user_width: int, architecture: Architecture) -> None:
        super().__init__()
        config = architecture.model
        self.history, self.returns = (
            QFormer(
                width=config.width,
                num_queries=config.num_queries,
                num_layers=config.qformer_layers,
                num_heads=config.num_heads,
                source_width=config.width,
                condition_width=user_width,
                dropout=config.dropout,
            )
            for _ in range(2)
        )
        width = user_width + 2 * config.num_queries * config.width
        tower = Tower(hidden=config.tower, dropout=config.dropout)
        self.towers = nn.ModuleList(Dense(width, tower, config.width) for _ in architecture.samples.horizons)

    def forward(self, seen: Seen) -> Tensor:
        """Return e_u `(B, H, D)`, each of root mean square 1."""
        history_BQD = self.history(seen.history_BTD, seen.history_real_BT, seen.x_BU)
        return_BQD = self.returns(seen.return_BAD, seen.return_real_BA, seen.x_BU)
        fused_BW = torch.cat([seen.x_BU, history_BQD.flatten(1), return_BQD.flatten(1)], dim=1)
        return torch.stack([_unit(tower(fused_BW)) for tower in self.towers], dim=1)


class Student(nn.Module):
    """Stage 2, and what is served: f on [x_u ; e_u]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.observer = Observer(architecture)
        self.sfe = SequenceFusionEncoder(self.observer.width, architecture)
        width = self.observer.width + architecture.model.width
        self.retention = RetentionNet(width, self.observer.prior_width, architecture)

    def forward(self, observable: Observable) -> Tensor:
        """Return logits `(B, H)`."""
        return self.both(observable)[0]

    def vectors(self, observable: Observable) -> Tensor:
        """Return e_u `(B, H, D)`."""
        return self.both(observable)[1]

    def both(self, observable: Observable) -> tuple[Tensor, Tensor]:
        """Logits and vectors in one pass."""
        seen = self.observer(observable)
        vector_BHD = self.sfe(seen)
        return _retained(self.retention, seen, vector_BHD), vector_BHD


def filled(model: Teacher | Student | PPNetBase, table: ItemTable) -> None:
    """Give a new model its catalogue."""
    model.observer.items.fill(table)


def _retained(net: RetentionNet, seen: Seen, vector_BHD: Tensor) -> Tensor:
    x_BHU = seen.x_BU.unsqueeze(1).expand(-1, vector_BHD.shape[1], -1)
    logit_BH: Tensor = net(torch.cat([x_BHU, vector_BHD], dim=-1), seen.prior_BC)
    return logit_BH


def _repeat(x_BU: Tensor, architecture: Architecture) -> Tensor:
    return x_BU.unsqueeze(1).expand(-1, len(architecture.samples.horizons), -1)


def _unit(x_BD: Tensor) -> Tensor:
    # Cosine compares directions only; with equal lengths on both sides f meets nothing new after stage 1.
    return F.rms_norm(x_BD, (x_BD.shape[-1],))


def _embedding(rows: int, width: int, std: float = 0.1) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=std)
    return table
