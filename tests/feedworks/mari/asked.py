"""A schema with every kind of input, a model that takes them, its package, and requests for it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from feedworks.mari import samples
from feedworks.mari.convert import reparameterise
from feedworks.mari.schema import ModelInput, RankerSchema
from feedworks.storage import write_json

MAX_CANDIDATES = 50
SCHEMA = RankerSchema(
    inputs=(
        ModelInput(name="age", side="user"),
        ModelInput(name="user", side="user", shape=(3,), fields=("a", "b", "c")),
        ModelInput(name="history", side="user", dtype="int64", shape=(4,), sizes=(9,)),
        ModelInput(name="item", side="item", dtype="int64", shape=(2,), sizes=(9, 5), fields=("id", "shop")),
        ModelInput(name="price", side="item"),
        ModelInput(name="match", side="cross", shape=(2, 3)),
    ),
    outputs=("click", "like"),
    max_candidates=MAX_CANDIDATES,
)


def draw(schema: RankerSchema, num_candidates: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random valid values of the user and of the candidates."""
    rng = np.random.default_rng(seed)
    user: dict[str, Any] = {}
    candidates: dict[str, Any] = {}
    for each in schema.inputs:
        shape = each.shape if each.of_user else (num_candidates, *each.shape)
        if each.dtype == "int64":
            values = rng.integers(0, np.array(each.sizes) if each.sizes else 10, size=shape)
        else:
            values = rng.standard_normal(shape).astype(np.float32)
        (user if each.of_user else candidates)[each.name] = np.asarray(values)
    return user, candidates


def listed(values: dict[str, Any]) -> dict[str, Any]:
    """The same as lists, for JSON."""
    return {name: np.asarray(value).tolist() for name, value in values.items()}


class Ranker(nn.Module):
    """Takes every kind of input, returns two scores a row."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(9, 4)
        self.shop = nn.Embedding(5, 3)
        self.joint = nn.Linear(1 + 3 + 4 + 4 + 3 + 1 + 6, 16)
        self.last = nn.Linear(16, 2)

    def forward(
        self, age: Tensor, user: Tensor, history: Tensor, item: Tensor, price: Tensor, match: Tensor
    ) -> Tensor:
        """Score B rows."""
        seen = self.item(history).mean(dim=1)
        parts = [age[:, None], user, seen, self.item(item[:, 0]), self.shop(item[:, 1]), price[:, None]]
        return self.last(torch.relu(self.joint(torch.cat([*parts, match.flatten(1)], dim=1))))


def seeded_ranker(seed: int = 0) -> Ranker:
    """A ranker in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Ranker().eval()


def write_package(folder: Path, model: nn.Module, schema: RankerSchema, tag: str = "mari:test") -> Path:
    """Package a model as the pipeline does."""
    example = samples.tiled(schema, samples.draw(schema, [3]))
    twin = reparameterise(model, example, list(schema.sides.values())).twin
    twin.save(folder / "twin")
    schema.write(folder / "sides.json")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    digests = {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files}
    write_json(folder / "package.json", {"tag": tag, "files": digests, "merge_requests": True})
    return folder


def scores_of(
    model: nn.Module, schema: RankerSchema, user: dict[str, Any], candidates: dict[str, Any]
) -> npt.NDArray[np.float32]:
    """What the original model says, `(B, T)`: the user's values repeated for each candidate."""
    rows = len(next(iter(candidates.values())))
    inputs = [
        torch.from_numpy(np.repeat(np.asarray(user[each.name], each.dtype)[None], rows, axis=0))
        if each.of_user
        else torch.from_numpy(np.asarray(candidates[each.name], each.dtype))
        for each in schema.inputs
    ]
    with torch.no_grad():
        return model(*inputs).reshape(rows, -1).numpy()
