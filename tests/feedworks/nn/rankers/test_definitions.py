"""Each ranker against its definition, written out row by row in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .samples import FEATURES, NAMES, NUM_ROWS, NUMBERED, inputs, ranker


def numbers(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(state, name, x):
    bias = state.get(f"{name}.bias", 0)
    return (
        np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in state[f"{name}.weight"]]) + bias
    )


def layer(state, name, x):
    """Product, BatchNorm on its running moments if there is one, ReLU."""
    x = linear(state, f"{name}.0", x)
    if f"{name}.1.running_mean" in state:
        mean, var = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
        x = (x - mean) / np.sqrt(var + 1e-5) * state[f"{name}.1.weight"] + state[f"{name}.1.bias"]
    return relu(x)


def dense(state, name, x):
    number = 0
    while f"{name}.layers.{number}.0.weight" in state:
        x = layer(state, f"{name}.layers.{number}", x)
        number += 1
    return linear(state, f"{name}.last", x) if f"{name}.last.weight" in state else x


class Row:
    """The embeddings of one row, looked up in a table of its own for each field."""

    def __init__(self, state, given, row, features):
        table, sizes = state["embedding.table.weight"], (*features.user_sizes, *features.item_sizes)
        self.tables = np.split(table, np.cumsum(sizes)[:-1])
        num_user = len(features.user_sizes)
        self.user = [t[i] for t, i in zip(self.tables[:num_user], given["user"][row].numpy(), strict=True)]
        self.item = [t[i] for t, i in zip(self.tables[num_user:], given["item"][row].numpy(), strict=True)]
        self.items = self.tables[num_user]
        self.history = given["history"][row].numpy() if "history" in given else None
        numbers_of = [given[k][row].numpy() if k in given else [] for k in ("user_number", "item_number")]
        self.user_side = np.concatenate([*self.user, numbers_of[0]])
        self.x = np.concatenate([self.user_side, *self.item, numbers_of[1]])


def mlp(state, row):
    return dense(state, "dense", row.x)[0]


def mmoe(state, row, num_experts, num_tasks):
    outs = [dense(state, f"experts.{e}", row.x) for e in range(num_experts)]
    logits = []
    for task in range(num_tasks):
        power = np.exp(linear(state, f"gates.{task}", row.x))
        mixed = sum(share * out for share, out in zip(power / power.sum(), outs, strict=True))
        logits.append(dense(state, f"towers.{task}", mixed)[0])
    return logits


def din(state, row):
    query, total = row.item[0], np.zeros(len(row.item[0]))
    keys = row.user if row.history is None else [row.items[place - 1] for place in row.history if place > 0]
    for key in keys:
        pair = np.concatenate([query, key, query - key, query * key])
        total = total + dense(state, "activation", pair)[0] * key
    return dense(state, "dense", np.concatenate([row.x, total]))[0]


def dcnv2(state, row):
    x = row.x
    for number in range(2):
        x = row.x * linear(state, f"crosses.{number}", x) + x
    return linear(state, "last", np.concatenate([x, dense(state, "dense", row.x)]))[0]


def gate(state, name, prior, x):
    hidden = relu(linear(state, f"{name}.first", np.concatenate([prior, x])))
    return 2 * sigmoid(linear(state, f"{name}.second", hidden))


def ppnet(state, row, gate_user=(0,), domain=()):
    x = row.x
    if domain:
        x = x * gate(state, "domain_gate", np.concatenate([row.user[f] for f in domain]), x)
    prior = np.concatenate([*(row.user[f] for f in gate_user), row.item[0]])
    hidden = x
    for number in range(2):
        factors = gate(state, f"gates.{number}", prior, x)
        hidden = factors * layer(state, f"layers.{number}", hidden)
    return linear(state, "last", hidden)[0]


DEFINITIONS = {
    "mlp": mlp,
    "mmoe": lambda state, row: mmoe(state, row, 3, 2),
    "mmoe of one task": lambda state, row: mmoe(state, row, 2, 1)[0],
    "din": din,
    "din over fields": din,
    "dcnv2": dcnv2,
    "ppnet": ppnet,
    "pepnet": lambda state, row: ppnet(state, row, gate_user=(0, 2), domain=(1,)),
}


@pytest.mark.parametrize("features", [FEATURES, NUMBERED], ids=["ids", "ids and numbers"])
@pytest.mark.parametrize("name", NAMES)
def test_a_ranker_is_its_definition(name, features):
    model, given = ranker(name, features), inputs(name, features)
    state = numbers(model)
    expected = [DEFINITIONS[name](state, Row(state, given, row, features)) for row in range(NUM_ROWS)]
    with torch.no_grad():
        logits = model(**given)
    assert logits.shape == ((NUM_ROWS, 2) if name == "mmoe" else (NUM_ROWS,))
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-12, atol=1e-12)
