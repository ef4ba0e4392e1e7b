"""Small rankers with weights that are far from their start, and rows for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feedworks.nn.rankers import DIN, MLP, DCNv2, Features, MMoE, PPNet, Tower

FEATURES = Features(user_sizes=(5, 3, 4), item_sizes=(7, 2), width=4)
NUMBERED = Features(user_sizes=(5, 3, 4), item_sizes=(7, 2), width=4, user_numbers=3, item_numbers=2)
TOWER = Tower(hidden=(8, 6), dropout=0.3, batch_norm=True)
NUM_ROWS, NUM_PLACES = 9, 5


def rankers(features: Features = FEATURES) -> dict[str, nn.Module]:
    return {
        "mlp": MLP(features, TOWER),
        "mmoe": MMoE(features, Tower(hidden=(8,)), TOWER, num_experts=3, num_tasks=2),
        "mmoe of one task": MMoE(features, Tower(hidden=(8,)), Tower(hidden=()), num_experts=2),
        "din": DIN(features, TOWER, attention=(6,)),
        "din over fields": DIN(features, TOWER, attention=(6,), has_history=False),
        "dcnv2": DCNv2(features, TOWER, num_cross=2),
        "ppnet": PPNet(features, TOWER, gate_hidden=5),
        "pepnet": PPNet(features, TOWER, gate_user=(0, 2), domain=(1,)),
    }


NAMES = tuple(rankers())


def ranker(name: str, features: Features = FEATURES) -> nn.Module:
    """In eval mode and float64."""
    torch.manual_seed(7)
    model = rankers(features)[name].double().eval()
    for part in model.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight)
        if isinstance(part, nn.BatchNorm1d):
            for tensor in (part.running_mean, part.weight, part.bias):
                nn.init.normal_(tensor)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return model


def inputs(name: str, features: Features = FEATURES, rows: int = NUM_ROWS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def ids(sizes: tuple[int, ...]) -> Tensor:
        return torch.stack([torch.randint(size, (rows,), generator=generator) for size in sizes], dim=1)

    given = {"user": ids(features.user_sizes), "item": ids(features.item_sizes)}
    if name == "din":
        given["history"] = ids((features.item_sizes[0] + 1,) * NUM_PLACES)
        given["history"][0] = 0
    if features.user_numbers:
        given["user_number"] = torch.randn(rows, features.user_numbers, generator=generator).double()
        given["item_number"] = torch.randn(rows, features.item_numbers, generator=generator).double()
    return given
