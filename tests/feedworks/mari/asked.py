"""A schema with every kind of input, and requests for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from feedworks.mari.schema import ModelInput, RankerSchema

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
