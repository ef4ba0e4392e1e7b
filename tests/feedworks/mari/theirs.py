"""A ranking model as somebody else wrote it, which tests bring in from outside by `theirs.py:build`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

SIDES = {
    "inputs": [
        {"name": "profile", "side": "user", "shape": [60]},
        {"name": "item", "side": "item", "dtype": "int64", "sizes": [50]},
        {"name": "match", "side": "cross", "shape": [4]},
    ],
    "outputs": ["click", "buy"],
}


class Theirs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.first = nn.Linear(60 + 8 + 4, 32)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(32, 2)

    def forward(self, profile: Tensor, item: Tensor, match: Tensor) -> Tensor:
        both = torch.cat([profile, self.table(item), match], dim=-1)
        logits: Tensor = self.last(self.drop(torch.relu(self.first(both))))
        return logits


def build() -> nn.Module:
    torch.manual_seed(0)
    return Theirs()


def with_nan() -> nn.Module:
    model = build()
    nn.init.constant_(model.last.bias, torch.nan)
    return model


class Noisy(Theirs):
    def forward(self, profile: Tensor, item: Tensor, match: Tensor) -> Tensor:
        return super().forward(profile, item, match) + torch.rand(1)


class OneOutput(Theirs):
    def forward(self, profile: Tensor, item: Tensor, match: Tensor) -> Tensor:
        return super().forward(profile, item, match)[:, 0]


class CountsRows(Theirs):
    def forward(self, profile: Tensor, item: Tensor, match: Tensor) -> Tensor:
        return super().forward(profile, item, match) * int(profile.sum() > 0)


class Squeezes(Theirs):
    def forward(self, profile: Tensor, item: Tensor, match: Tensor) -> Tensor:
        return super().forward(profile, item, match).squeeze()


class InAnotherOrder(Theirs):
    def forward(self, profile: Tensor, item: Tensor, match: Tensor) -> dict[str, Tensor]:
        logits = super().forward(profile, item, match)
        return {"buy": logits[:, 1], "click": logits[:, 0]}


class Branches(Theirs):
    def forward(self, profile: Tensor, item: Tensor, match: Tensor) -> Tensor:
        logits = super().forward(profile, item, match)
        return torch.cond(logits.sum() > 0, torch.sin, torch.cos, (logits.detach(),))


class Remembers(Theirs):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, profile: Tensor, item: Tensor, match: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(profile, item, match)


def fails() -> nn.Module:
    raise RuntimeError("no weights\nto be found")


def a_number() -> int:
    return 3


def write_sides(path: Path) -> Path:
    path.write_text(json.dumps(SIDES))
    return path
